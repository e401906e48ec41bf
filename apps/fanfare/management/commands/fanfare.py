"""Look at the deployment, and act on it, from a shell."""

from __future__ import annotations

import dataclasses
import json
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from prometheus_client import parser as prometheus

from fanfare import conf, errors
from fanfare.engine import errors as engine_errors
from fanfare.integration import history, presence, publishing, queries

STATISTICS_TIMEOUT_S = 5.0


class Command(BaseCommand):
    help = "Show statistics, channels, members and histories; publish an event; disconnect a user."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--json", action="store_true", help="print JSON, one value per call")
        parser.add_argument("--app", metavar="ID", help="an application's id; the default application if not given")
        actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

        stats = actions.add_parser("stats", help="the figures of all workers, as /metrics has them")
        stats.add_argument("--url", help="the address of a worker; FANFARE_HOST and FANFARE_PORT if not given")
        stats.add_argument("--all", action="store_true", help="figures that are zero, too")

        channels = actions.add_parser("channels", help="occupied channels with their subscribers and users")
        channels.add_argument("--prefix", default="", help="only names that start with this")

        members = actions.add_parser("members", help="the members of a presence channel")
        members.add_argument("channel")

        events = actions.add_parser("history", help="kept events of a channel, the newest first")
        events.add_argument("channel")
        events.add_argument("--limit", type=int, default=20)

        publish = actions.add_parser("publish", help="publish an event")
        publish.add_argument("channel")
        publish.add_argument("event")
        publish.add_argument("data", nargs="?", default="{}", help="a text, usually JSON; - reads standard input")

        disconnect = actions.add_parser("disconnect", help="close the connections of a signed-in user")
        disconnect.add_argument("user")
        disconnect.add_argument("--reconnect", action="store_true", help="let the clients come back at once")

    def handle(self, *args: Any, **options: Any) -> None:
        actions: dict[str, Callable[[dict[str, Any]], tuple[Any, list[str]]]] = {
            "stats": self._stats,
            "channels": self._channels,
            "members": self._members,
            "history": self._history,
            "publish": self._publish,
            "disconnect": self._disconnect,
        }
        try:
            value, lines = actions[options["action"]](options)
        except (errors.FanfareError, engine_errors.EngineError, ValueError) as error:
            raise CommandError(str(error)) from error
        if options["json"]:
            self.stdout.write(json.dumps(value, ensure_ascii=False, default=str))
        else:
            self.stdout.write("\n".join(lines))

    def _stats(self, options: dict[str, Any]) -> tuple[Any, list[str]]:
        url = (options["url"] or f"http://{conf.settings.HOST}:{conf.settings.PORT}").rstrip("/") + "/metrics"
        headers = {"Authorization": f"Bearer {conf.settings.METRICS_TOKEN}"} if conf.settings.METRICS_TOKEN else {}
        request = urllib.request.Request(url, headers=headers)  # noqa: S310  (the operator names the address)
        try:
            with urllib.request.urlopen(request, timeout=STATISTICS_TIMEOUT_S) as answer:  # noqa: S310
                text = answer.read().decode()
        except (urllib.error.URLError, OSError) as error:
            raise CommandError(f"No worker answers at {url}: {error}. Name one with --url.") from error
        found = {
            sample.name + _labels(sample.labels): sample.value
            for family in prometheus.text_string_to_metric_families(text)
            for sample in family.samples
            if options["all"] or sample.value
        }
        return found, _table([(name, f"{value:g}") for name, value in found.items()])

    def _channels(self, options: dict[str, Any]) -> tuple[Any, list[str]]:
        prefix = options["prefix"]
        found = queries.ask("channels", options["app"], lambda app: lambda ask: ask.channels(app.id, prefix))
        value = {name: {"subscribers": count.subscriptions, "users": count.users} for name, count in found.items()}
        rows = [(name, f"{one['subscribers']} subscribers", f"{one['users']} users") for name, one in value.items()]
        return value, _table(sorted(rows)) or ["No channel is occupied."]

    def _members(self, options: dict[str, Any]) -> tuple[Any, list[str]]:
        found = presence.members(options["channel"], app=options["app"])
        value = [{"id": member.id, "info": member.info} for member in found]
        return value, _table([(str(one["id"]), json.dumps(one["info"])) for one in value]) or ["No member is here."]

    def _history(self, options: dict[str, Any]) -> tuple[Any, list[str]]:
        found = history.events(options["channel"], limit=options["limit"], app=options["app"])
        value = [dataclasses.asdict(event) for event in found]
        rows = [(str(event.offset), event.name, event.data[:200]) for event in found]
        return value, _table(rows) or ["The channel keeps no event."]

    def _publish(self, options: dict[str, Any]) -> tuple[Any, list[str]]:
        data = sys.stdin.read() if options["data"] == "-" else options["data"]
        publishing.publish(options["channel"], options["event"], data, app=options["app"], on_commit=False)
        return {"published": True}, [f"Published {options['event']} to {options['channel']}."]

    def _disconnect(self, options: dict[str, Any]) -> tuple[Any, list[str]]:
        presence.disconnect_user(options["user"], reconnect=options["reconnect"], app=options["app"])
        return {"disconnected": options["user"]}, [f"The connections of user {options['user']} are being closed."]


def _labels(labels: Mapping[str, str]) -> str:
    return "{" + ",".join(f'{name}="{value}"' for name, value in labels.items()) + "}" if labels else ""


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows with their columns below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
