"""Whether all is well, and what is not says why: sentences for the person on call."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fanfare.console import recent

WINDOW_S: Final = 300
BAD, WARN = "bad", "warn"
MANY_BEHIND: Final = 10_000  # entries that a worker has not read; it reads some 50,000 in a second
LOG_FULL: Final = 0.8  # above it entries are trimmed before their time


@dataclass(frozen=True, slots=True)
class Finding:
    """`page`: the console's page, by name, where to look further."""

    level: str
    text: str
    page: str = ""


def findings(
    states: Mapping[str, Mapping[str, Any]],
    *,
    expected: int,
    answered: int,
    gauges: Mapping[str, float],
    missing: Sequence[str] = (),
    faults: Sequence[Mapping[str, str]] = (),
) -> list[Finding]:
    """`states`: the answers of the workers to the question `state`, by worker. `missing`: the names of those that did
    not answer, as far as they are known. `faults`: what those reported without a question: `name` and `reason`."""
    found: list[Finding] = []
    for state in states.values():
        found += _of_worker(state)
    found += _missing(expected, answered, missing)  # after an engine that fails, which also silences the other workers
    found += [Finding(BAD, f"Worker {one['name']} reads no events: {one['reason']}", "workers") for one in faults]
    found += _of_log(gauges)
    troubles: dict[str, float] = {}
    for state in states.values():
        for name, value in state["troubles"].items():
            troubles[name] = troubles.get(name, 0) + value
    found += _of_counters(troubles)
    unique = {finding.text: finding for finding in found}
    return sorted(unique.values(), key=lambda finding: finding.level != BAD)


def _missing(expected: int, answered: int, names: Sequence[str]) -> Iterator[Finding]:
    if answered < expected:
        workers = _count(expected - answered, "worker")
        which = f" ({', '.join(names)})" if names else ""
        yield Finding(
            BAD,
            f"{workers} of {expected} did not answer within a second{which}: stopped without leaving, suspended, busy, "
            "cut off from the engine, or without new entries from it.",
            "workers",
        )


def _of_worker(state: Mapping[str, Any]) -> Iterator[Finding]:
    name = f"{state['node']} {state['pid']}"
    if not state["engine"]["ok"]:
        yield Finding(BAD, f"The engine of worker {name} fails: {state['engine']['reason'].rstrip('.')}.", "workers")
    if state["applications"]:
        yield Finding(BAD, f"Worker {name} cannot read the applications: {state['applications']}", "workers")
    if state.get("database"):  # not in the answer of an older release
        yield Finding(BAD, f"Worker {name} cannot use Django's database: {state['database']}", "workers")
    if state["mounts"]:
        yield Finding(BAD, f"Worker {name}: {state['mounts']}", "workers")
    if state["draining"]:
        yield Finding(WARN, f"Worker {name} is draining: it takes no new clients.", "workers")
    for job in state["jobs"]:
        if job["error"] and job["state"] == "pausing":
            yield Finding(BAD, f"The job {job['name']} of worker {name} fails: {job['error']}", "workers")


def _of_log(gauges: Mapping[str, float]) -> Iterator[Finding]:
    behind = gauges.get("engine.behind", 0)
    if behind > MANY_BEHIND:
        yield Finding(
            WARN, f"The workers have not read {behind:,.0f} entries of the log yet: deliveries are late.", "workers"
        )
    used, limit = gauges.get("engine.log_used_bytes", 0), gauges.get("engine.log_limit_bytes", 0)
    if limit and used > LOG_FULL * limit:
        yield Finding(
            BAD,
            f"The log uses {used / limit:.0%} of FANFARE_LOG_MAX_BYTES: entries are trimmed before their time, and at "
            "100 % publishers get 503.",
        )


_MINUTES: Final = f"in the last {WINDOW_S // 60} minutes"


def _of_counters(troubles: Mapping[str, float]) -> Iterator[Finding]:
    def of(*prefixes: str) -> float:
        return recent.total(troubles, prefixes)

    if dead := of("engine.reaped"):
        yield Finding(
            BAD,
            f"{_count(dead, 'worker')} died {_MINUTES}: killed, crashed, or suspended or cut off from the engine for "
            "too long.",
            "workers",
        )
    if gaps := of("gaps."):
        yield Finding(
            BAD,
            f"{_count(gaps, 'gap')} in the log {_MINUTES}: the workers closed their connections, and the clients "
            "reconnect and recover.",
        )
    if slow := of("closed.slow"):
        yield Finding(
            WARN,
            f"{_count(slow, 'client')} read too slowly and were closed with 4100 {_MINUTES}.",
            "doctor",
        )
    if failed := of("webhooks.failed", "webhooks.dropped"):
        yield Finding(
            BAD,
            f"{_count(failed, 'webhook delivery', 'webhook deliveries')} were given up or dropped {_MINUTES}.",
            "webhooks",
        )
    if refused := of("webhooks.refused"):
        yield Finding(WARN, f"{_count(refused, 'webhook request')} failed {_MINUTES} and are tried again.", "webhooks")
    if errors := of("api.failed", "console.failed", "callbacks.failed"):
        what = _count(errors, "request or callback", "requests or callbacks")
        yield Finding(BAD, f"{what} ended with an internal error {_MINUTES}; the server's log has the tracebacks.")
    if lost := of("recoveries.lost."):
        yield Finding(WARN, f"{_count(lost, 'recovery', 'recoveries')} failed {_MINUTES}.", "connections")
    clients = {name: value for name, value in troubles.items() if name.startswith(recent.REFUSALS)}
    if clients:
        most = max(clients, key=lambda name: clients[name])
        refusals, kind = _count(sum(clients.values()), "refusal"), _refusal(most)
        text = f"{refusals} {kind} {_MINUTES}" if len(clients) == 1 else f"{refusals} {_MINUTES}, most {kind}"
        yield Finding(WARN, f"{text}.", "doctor")


def _refusal(counter: str) -> str:
    prefix = next(one for one in recent.REFUSALS if counter.startswith(one))
    kind = {
        "pusher.refused.": "of connections",
        "pusher.subscription_refused.": "of subscriptions",
        "pusher.sign_in_refused.": "of sign-ins",
        "pusher.client_event_rejected.": "of client events",
        "pusher.history_refused.": "of history requests",
        "api.refused.": "of API requests",
        "sse.refused.": "of SSE connections",
        "http.refused.": "of HTTP requests",
    }[prefix]
    return f"{kind} ({counter.removeprefix(prefix).replace('_', ' ')})"


def _count(number: float, noun: str, plural: str = "") -> str:
    return f"{number:,.0f} {noun if number == 1 else plural or noun + 's'}"
