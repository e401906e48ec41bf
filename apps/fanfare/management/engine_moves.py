"""`manage.py fanfare engine status` and `engine move`."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

from django.core.management.base import CommandParser

from fanfare import conf
from fanfare.engine import current, moves
from fanfare.webhooks import deliveries


def add_arguments(parser: CommandParser) -> None:
    actions = parser.add_subparsers(dest="engine_action", required=True, metavar="ENGINE_ACTION")
    actions.add_parser("status", help="show where the log is, its workers, and whether it was moved")
    move = actions.add_parser("move", help="move the log to another store while clients are connected")
    move.add_argument("--to", metavar="URL", help="the new value of FANFARE_ENGINE; by default FANFARE_ENGINE_NEXT")


def run(options: dict[str, Any], say: Callable[[str], None]) -> tuple[Any, list[str]]:
    """The value for --json, and the lines for people. Raises EngineError, ValueError."""
    if conf.settings.REMOTE_URL:
        raise ValueError("FANFARE_REMOTE_URL is set: the log belongs to the other deployment.")
    old = _store(conf.settings.ENGINE)
    try:
        if options["engine_action"] == "status":
            return _status(old)
        to = options["to"] or conf.settings.ENGINE_NEXT
        if not to:
            raise ValueError("Name the new store with --to or FANFARE_ENGINE_NEXT.")
        return _move(old, to, say)
    finally:
        old.close()


def _store(name: str) -> moves.Store:
    return current.store(name, conf.settings.DATA_DIR, redis_partitions=conf.settings.REDIS_PARTITIONS)


def _status(store: moves.Store) -> tuple[Any, list[str]]:
    mark = store.mark()
    value: dict[str, Any] = {"store": store.public, "mark": None if mark is None else mark._asdict()}
    lines = [store.public]
    if mark is not None and (refusal := mark.refusal(store.public)):
        return value, [*lines, refusal]
    streams = store.streams()
    value |= {"workers": store.workers(), "channels": len(streams)}
    lines += [f"  workers: {value['workers']}", f"  channels with a history: {value['channels']}"]
    if mark is not None:
        lines.append(f"  moved here from {mark.peer}")
    return value, lines


def _move(old: moves.Store, to: str, say: Callable[[str], None]) -> tuple[Any, list[str]]:
    new = _store(to)
    try:
        if new.public == old.public:
            raise ValueError(f"FANFARE_ENGINE is {old.public} already.")
        mover = moves.Mover(old, new, move=secrets.token_hex(6), started=deliveries.continue_from, say=say)
        if mover.complete():
            return {"completed": True}, [
                f"An earlier move to {new.public} was interrupted after everything was copied. It is complete now.",
                _next_step(to),
            ]
        report = mover.run()
    finally:
        new.close()
    lines = [
        (
            f"Moved to {new.public}. Channels with a history: {report.streams}, events: {report.entries}, "
            f"cached events: {report.cached}, resume tokens: {report.sessions}."
        ),
        f"Publishing waited or was refused for {report.frozen_s:.1f} s. Workers of the old store: {report.workers}.",
        _next_step(to),
    ]
    return report._asdict(), lines


def _next_step(to: str) -> str:
    if to == conf.settings.ENGINE_NEXT:
        return (
            "Workers with FANFARE_ENGINE_NEXT switch to the new store now. Set FANFARE_ENGINE to the new store for all "
            "processes before FANFARE_ENGINE_NEXT is removed."
        )
    return (
        "Now set FANFARE_ENGINE to the new store, and restart all workers and all other processes that publish: until "
        "then they refuse to publish."
    )
