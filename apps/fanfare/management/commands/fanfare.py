"""Look at the deployment, and act on it, from a shell."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from django import db
from django.core.management.base import BaseCommand, CommandError, CommandParser
from prometheus_client import parser as prometheus

from fanfare import conf, errors
from fanfare.applications import database
from fanfare.console import client, filters, verdict
from fanfare.engine import errors as engine_errors
from fanfare.integration import history, presence, publishing, queries, target, tokens, users
from fanfare.management import engine_moves
from fanfare.protocol import capabilities, names
from fanfare.runtime import text
from fanfare.runtime.backoff import Backoff

STATISTICS_TIMEOUT_S = 5.0
LIVE_S = 2.0
LONGEST_PAUSE_S = 5.0  # between two attempts of a tail to connect again
LINE_CHARACTERS = 300

# The filters of `tail`: what a shown item has in common.
FILTERS = {
    "channel": "of this channel; * matches any characters",
    "event": "of events with this name; * matches any characters",
    "user": "of this user",
    "socket": "of this socket id",
    "text": "that contain this text",
}


class Command(BaseCommand):
    help = (
        "Say whether all is well; show live events, statistics, channels, members, histories and traces; publish an "
        "event; disconnect a user; issue and revoke capability tokens."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        _add_common(parser, False, None)
        actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

        status = actions.add_parser(
            "status", help="say whether all is well and what is not, as on the console's overview; exit with 1 if not"
        )
        _add_url(status)

        stats = actions.add_parser("stats", help="show the metrics of all workers, as on /metrics")
        stats.add_argument("--url", help="the address of a worker; by default FANFARE_HOST and FANFARE_PORT")
        stats.add_argument("--all", action="store_true", help="also show metrics that are zero")
        stats.add_argument("--live", action="store_true", help="repeat every two seconds, with the change per second")

        tail = actions.add_parser("tail", help="show events, subscriptions, connections, refusals and webhooks live")
        _add_url(tail)
        tail.add_argument(
            "--types", default="", help=f"a comma-separated list of {', '.join(filters.TYPES)}; by default all"
        )
        for name, shown in FILTERS.items():
            tail.add_argument(f"--{name}", default="", help=f"show only items {shown}")
        tail.add_argument("--limit", type=int, default=0, help="exit after this many lines")

        connections = actions.add_parser("connections", help="list the newest connections of all workers")
        _add_url(connections)
        connections.add_argument("--text", default="", help="a part of the socket id, the address, the user or the SDK")
        connections.add_argument("--channel", default="", help="list only connections that are subscribed to it")

        trace = actions.add_parser("trace", help="show the path of one event through the workers")
        _add_url(trace)
        trace.add_argument(
            "entry", nargs="?", help="the event's position, such as 0:4711; by default, list the newest recorded events"
        )
        trace.add_argument("--channel", default="", help="record every event of this channel; needs --app")

        doctor = actions.add_parser(
            "doctor", help="explain a refused signature; without --auth, list the newest refusals"
        )
        _add_url(doctor)
        doctor.add_argument("--kind", default="subscription", choices=["subscription", "sign-in", "API request"])
        for name in ("auth", "socket-id", "channel", "channel-data", "user-data", "request-url", "method"):
            doctor.add_argument(f"--{name}", default="")

        channels = actions.add_parser("channels", help="list the occupied channels with their subscribers and users")
        channels.add_argument(
            "--prefix", default="", help="only names that start with this; #server-to-user- lists those of users"
        )

        members = actions.add_parser("members", help="list the members of a presence channel")
        members.add_argument("channel")

        events = actions.add_parser("history", help="list the newest kept events of a channel, in order")
        events.add_argument("channel")
        events.add_argument("--limit", type=int, default=20)

        publish = actions.add_parser("publish", help="publish an event")
        publish.add_argument("channel")
        publish.add_argument("event")
        publish.add_argument("data", nargs="?", default="{}", help="a text, usually JSON; - reads standard input")

        engine_moves.add_arguments(actions.add_parser("engine", help="show where the log is stored, or move it"))

        disconnect = actions.add_parser("disconnect", help="close the connections of a signed-in user")
        disconnect.add_argument("user", help="the user's id in the protocol, usually the primary key")
        disconnect.add_argument("--reconnect", action="store_true", help="let the clients reconnect at once")

        issue = actions.add_parser("capability", help="issue a token that allows its bearer to use channels")
        issue.add_argument("channels", metavar="CHANNEL", nargs="+", help="a name; * matches any characters")
        issue.add_argument("--user", metavar="ID", help="the user of the token")
        issue.add_argument(
            "--rights", default="subscribe,history", help=f"a comma-separated list of {', '.join(capabilities.RIGHTS)}"
        )
        issue.add_argument("--seconds", metavar="N", type=int, default=tokens.TOKEN_SECONDS, help="its lifetime")

        revoke = actions.add_parser("revoke", help="revoke a token by its id, the claim jti")
        revoke.add_argument("id", metavar="JTI")
        revoke.add_argument("--expires", metavar="TIME", type=float, help="Unix time at which the token ends")

        for action in actions.choices.values():  # before the action and after it
            _add_common(action, argparse.SUPPRESS, argparse.SUPPRESS)

    def handle(self, *args: Any, **options: Any) -> None:
        actions: dict[str, Callable[[dict[str, Any]], tuple[Any, list[str]]]] = {
            "status": self._status,
            "stats": self._stats,
            "tail": self._tail,
            "connections": self._connections,
            "trace": self._trace,
            "doctor": self._doctor,
            "channels": self._channels,
            "members": self._members,
            "history": self._history,
            "publish": self._publish,
            "disconnect": self._disconnect,
            "capability": self._capability,
            "revoke": self._revoke,
            "engine": lambda given: engine_moves.run(given, self.stderr.write),
        }
        try:
            value, lines = actions[options["action"]](options)
        except (errors.FanfareError, engine_errors.EngineError, ValueError) as error:
            raise CommandError(str(error)) from error
        except db.Error as error:
            raise CommandError(f"Django's database cannot be used: {database.reason(error)}") from error
        except KeyboardInterrupt:
            return
        if options["json"]:
            if value is not None:  # a tail has printed its items
                self.stdout.write(json.dumps(value, ensure_ascii=False, default=str))
        elif lines:
            self.stdout.write("\n".join(lines))
        if options["action"] == "status" and _is_bad(value):
            sys.exit(1)

    def _status(self, options: dict[str, Any]) -> tuple[Any, list[str]]:
        value = next(client.Client(options["url"]).stream("overview"), None)
        if value is None:
            raise CommandError("The worker ended the connection before it answered.")
        findings, answered = value["findings"], len(value["workers"])
        head = "Something is wrong" if _is_bad(value) else "Something needs attention" if findings else "All is well"
        of = _counted(value["expected"], "worker")
        return value, [
            f"{head}. {answered} of {of} answered.",
            *(f"  {one['level'].upper():<4}  {one['text']}" for one in findings),
        ]

    def _stats(self, options: dict[str, Any]) -> tuple[Any, list[str]]:
        if not options["live"]:
            return self._figures(options)
        before: dict[str, float] = {}
        while True:
            found, _ = self._figures(options)
            changes = {name: (value - before.get(name, value)) / LIVE_S for name, value in found.items()}
            before = found
            if options["json"]:
                self.stdout.write(json.dumps(found))
            else:
                rows = [
                    (name, f"{value:g}", f"{changes[name]:+g}/s" if changes[name] else "")
                    for name, value in found.items()
                    if "_bucket{" not in name
                ]
                self.stdout.write(f"\n{time.strftime('%H:%M:%S')}\n" + "\n".join(_table(rows)))
            self.stdout.flush()
            time.sleep(LIVE_S)

    def _figures(self, options: dict[str, Any]) -> tuple[Any, list[str]]:
        url = client.address(options["url"]) + "/metrics"
        headers = {"Authorization": f"Bearer {conf.settings.METRICS_TOKEN}"} if conf.settings.METRICS_TOKEN else {}
        request = urllib.request.Request(url, headers=headers)  # noqa: S310  (the operator names the address)
        try:
            with urllib.request.urlopen(request, timeout=STATISTICS_TIMEOUT_S) as answer:  # noqa: S310
                body = answer.read().decode()
        except OSError as error:
            raise CommandError(client.no_answer(url, error)) from error
        found = {
            sample.name + _labels(sample.labels): sample.value
            for family in prometheus.text_string_to_metric_families(body)
            for sample in family.samples
            if options["all"] or sample.value
        }
        return found, _table([(name, f"{value:g}") for name, value in found.items()])

    def _tail(self, options: dict[str, Any]) -> tuple[Any, list[str]]:
        left = options["limit"]
        for batch in self._batches(options):
            if batch.get("field"):
                raise CommandError(batch["problem"])
            if batch.get("problem"):
                self.stderr.write(f"… {batch['problem']}")
            if batch.get("missing"):
                workers = _counted(batch["missing"], "worker")
                self.stderr.write(
                    f"… no answer from {workers}: their refusals, connections and subscriptions are missing"
                )
            if batch.get("missed"):
                self.stderr.write(f"… {batch['missed']} were lost because the output is read too slowly")
            for item in batch["items"]:
                self.stdout.write(json.dumps(item) if options["json"] else _line(item))
                left -= 1
                if left == 0:
                    return None, []
            skipped = batch["seen"] - len(batch["items"])
            if skipped and not options["json"]:
                self.stderr.write(f"… this is a sample: {skipped} more items are not shown")
            if batch.get("unexamined") and not options["json"]:
                self.stderr.write(f"… {batch['unexamined']} events came too fast to be compared with the filter")
            self.stdout.flush()
        return None, []

    def _batches(self, options: dict[str, Any]) -> Iterator[Any]:
        """The batches of the tail. A worker that ends is replaced by the next one that answers. The tail is live while
        a worker answers and reads the log."""
        names = ("app", "types", "channel", "event", "user", "socket", "text")
        asked, backoff = client.Client(options["url"]), Backoff(longest_s=LONGEST_PAUSE_S)
        is_live: bool | None = None
        while True:
            why, reads_log = "The worker ended the connection.", True
            try:
                for batch in asked.stream("tail", {name: options[name] for name in names}):
                    reads_log = batch.get("reads_log", reads_log)
                    if is_live is not reads_log and not batch.get("field"):
                        is_live = reads_log
                        self._say_live("" if is_live else "The worker does not read the log, so events are missing.")
                    backoff.succeeded()
                    yield batch
            except client.ConsoleError as error:
                if is_live is None:  # the command's arguments are wrong, or no worker runs
                    raise
                why = str(error)
            if is_live:
                self._say_live(f"{why} Connecting again.")
            is_live = False
            time.sleep(backoff.failed())

    def _say_live(self, why_not: str) -> None:
        now = time.strftime("%H:%M:%S")
        self.stderr.write(f"… not live since {now}: {why_not}" if why_not else f"… live since {now}")

    def _connections(self, options: dict[str, Any]) -> tuple[Any, list[str]]:
        asked = {name: options[name] for name in ("app", "text", "channel")}
        value = client.Client(options["url"]).get("connections", asked)
        rows = [
            (
                one["socket"],
                ", ".join(one["users"]),
                one["address"],
                f"{one['client']} {one['version']}".strip(),
                _counted(one["channels"], "channel"),
                f"{one['buffered']} bytes wait" if one["buffered"] else "",
            )
            for one in value["connections"]
        ]
        return value, _table(rows) or ["No connection matches."]

    def _trace(self, options: dict[str, Any]) -> tuple[Any, list[str]]:
        asked = client.Client(options["url"])
        if options["entry"]:
            value = asked.get("trace", {"entry": options["entry"]})
            return value, _way(value)
        value = asked.get("traces", {"app": options["app"], "channel": options["channel"]})
        rows = [
            (one["entry"], one["channel"], _counted(one["written"], "socket"), f"{one['last_ms']:g} ms")
            for one in value["events"]
        ]
        return value, _table(rows) or ["No event with subscribers has been recorded yet."]

    def _doctor(self, options: dict[str, Any]) -> tuple[Any, list[str]]:
        asked = client.Client(options["url"])
        if not (options["auth"] or options["request_url"]):
            value = asked.get("refusals")
            return value, [_line(item) for item in reversed(value["refusals"])] or ["Nothing has been refused."]
        names = ("kind", "auth", "socket_id", "channel", "channel_data", "user_data", "method")
        body = {name: options[name] for name in names} | {"url": options["request_url"]}
        body["app"] = options["app"] or target.application(None).id
        value = asked.post("doctor", body)
        marks = {True: "right", False: "WRONG", None: "hint"}
        lines = [value["verdict"], *(f"  {marks[one['ok']]}  {one['text']}" for one in value["findings"])]
        return value, [*lines, "The signature must be of:", value["signed"]]

    def _channels(self, options: dict[str, Any]) -> tuple[Any, list[str]]:
        prefix = options["prefix"]
        found = queries.ask("channels", options["app"], lambda app: lambda ask: ask.channels(app.id, prefix))
        value = {
            name: {"subscribers": count.subscriptions, "users": count.users}
            for name, count in found.items()
            if prefix.startswith("#") or not name.startswith("#")
        }
        rows = [
            (
                name,
                _counted(one["subscribers"], "subscriber"),
                _counted(one["users"], "user") if names.is_presence(name) else "",
            )
            for name, one in value.items()
        ]
        return value, _table(sorted(rows)) or ["No channel is occupied."]

    def _members(self, options: dict[str, Any]) -> tuple[Any, list[str]]:
        found = presence.members(options["channel"], app=options["app"])
        value = [{"id": member.id, "info": member.info} for member in found]
        rows = [(str(one["id"]), json.dumps(one["info"])) for one in value]
        return value, _table(rows) or ["The channel has no members."]

    def _history(self, options: dict[str, Any]) -> tuple[Any, list[str]]:
        found = history.events(options["channel"], limit=options["limit"], app=options["app"])
        value = [dataclasses.asdict(event) for event in found]
        rows = [(str(event.offset), event.name, event.data[:200]) for event in found]
        return value, _table(rows) or [_without_events(options)]

    def _publish(self, options: dict[str, Any]) -> tuple[Any, list[str]]:
        data = sys.stdin.read() if options["data"] == "-" else options["data"]
        sent = publishing.publish(options["channel"], options["event"], data, app=options["app"], on_commit=False)
        line = f"Published {options['event']} to {options['channel']}."
        if sent.entry:
            line += f" Its position is {sent.entry}: manage.py fanfare trace {sent.entry}"
        return {"published": True, "entry": sent.entry, "position": sent.position}, [line]

    def _disconnect(self, options: dict[str, Any]) -> tuple[Any, list[str]]:
        name, app = options["user"], options["app"]
        user = users.named(name)
        is_online = presence.is_online(user, app=app)
        presence.disconnect_user(user, reconnect=options["reconnect"], app=app)
        if is_online:
            return {"disconnected": name}, [f"The connections of user {name} are being closed."]
        line = f"No WebSocket is signed in as {name}. SSE connections of this user are closed."
        return {"disconnected": name}, [line]

    def _capability(self, options: dict[str, Any]) -> tuple[Any, list[str]]:
        token = tokens.capability(
            options["channels"],
            user=None if options["user"] is None else users.named(options["user"]),
            rights=options["rights"].split(","),
            seconds=options["seconds"],
            app=options["app"],
        )
        return {"token": token, "jti": token.id, "exp": int(token.expires)}, [token, f"jti: {token.id}"]

    def _revoke(self, options: dict[str, Any]) -> tuple[Any, list[str]]:
        tokens.revoke_capability(options["id"], expires=options["expires"], app=options["app"])
        return {"revoked": options["id"]}, [f"The token {options['id']} is refused from now on."]


def _is_bad(snapshot: dict[str, Any]) -> bool:
    return any(one["level"] == verdict.BAD for one in snapshot["findings"])


def _add_common(parser: CommandParser, json_by_default: Any, app_by_default: Any) -> None:
    parser.add_argument("--json", action="store_true", default=json_by_default, help="print JSON instead of text")
    parser.add_argument(
        "--app",
        metavar="ID",
        default=app_by_default,
        help="an application's id; by default that of the default application",
    )


def _add_url(parser: CommandParser) -> None:
    parser.add_argument("--url", default="", help="the address of a worker; by default FANFARE_HOST and FANFARE_PORT")


def _without_events(options: dict[str, Any]) -> str:
    """The sentence of the console's page Channels. In remote mode the rules are not known."""
    if conf.settings.REMOTE_URL or target.application(options["app"]).rules.of(options["channel"]) is not None:
        return "No event is kept."
    return "No channel rule matches this channel, so it keeps no events. Add a rule on the page of the application."


def _line(item: dict[str, Any]) -> str:
    """An item of the tail."""
    at = time.strftime("%H:%M:%S", time.localtime(item["at"])) + f".{int(item['at'] * 1000) % 1000:03}"
    where = item.get("channel") or item.get("socket") or item.get("url") or item.get("what") or ""
    what = item.get("event") or item.get("reason") or item.get("user") or ""
    rest = item.get("data") or item.get("text") or item.get("address") or ""
    line = f"{at}  {item['type']:<12}  {where}  {what}  {rest}"
    return text.clean(f"{line}  [{item['entry']}]" if "entry" in item else line, LINE_CHARACTERS)


def _way(value: dict[str, Any]) -> list[str]:
    lines = [f"Event {value['entry']}"]
    publication = value["publication"]
    if publication is not None:
        by = ", ".join(f"{name} {what}" for name, what in publication["publisher"].items())
        took = (publication["committed"] - publication["began"]) * 1000 if "committed" in publication else None
        lines.append(f"  published {by}" + ("" if took is None else f"; in the log after {took:.1f} ms"))
    for worker in value["workers"]:
        one = worker["delivery"]
        skipped = [f"excluded {one['excluded']}"] if one.get("excluded") else []
        skipped += [f"conflated {', '.join(one['conflated_sockets'])}"] if one.get("conflated_sockets") else []
        skipped += [f"{name} {one[name]}" for name in ("catching_up", "waiting") if one.get(name)]
        skipped += [f"slow {', '.join(one['slow'])}"] if one.get("slow") else []
        lines.append(
            f"  {worker['node']} {worker['pid']}: read after {one.get('read_ms', 0):g} ms, "
            f"{_counted(one.get('written', 0), 'socket')}, "
            f"p50 {one.get('p50_ms', 0):g} ms, p99 {one.get('p99_ms', 0):g} ms"
            + "".join(f"; {what}" for what in skipped)
        )
        lines += [f"    recovered by {replay['socket']}" for replay in one.get("replays", ())]
    lines += [
        f"  webhook {one['url']}: {one['state']} after {_counted(one['attempts'], 'attempt')}"
        for one in value["webhooks"]
    ]
    return lines if len(lines) > 1 else [*lines, "  No worker has a record of it."]


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _labels(labels: Mapping[str, str]) -> str:
    return "{" + ",".join(f'{name}="{value}"' for name, value in labels.items()) + "}" if labels else ""


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows with their columns below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
