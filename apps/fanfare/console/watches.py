"""What a worker sends to the live tails of all workers: what its connections do, apart from events.

Interest is a lease: the worker of a page sends the command `tail.watch`, and repeats it before the lease ends. A worker
that has a lease has a tap (`fanfare.hub.activity`), which sends what the filter takes to the mailbox of the page's
worker. Without a lease no worker has a tap.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

import orjson

from fanfare.console import filters
from fanfare.engine import interface
from fanfare.hub import activity
from fanfare.hub import hub as hubs

WATCH: Final = "tail.watch"
LEASE_S: Final = 15.0
TURN_S: Final = 0.25  # between two batches
ITEMS_PER_S: Final = 100  # of a tail, of each worker and of the log
ITEMS_PER_TURN: Final = int(ITEMS_PER_S * TURN_S)
BATCH_CHARACTERS: Final = 100_000  # of the data of a turn's items; the first item is always among them
MOST_WATCHES: Final = 200  # of all workers, in one worker

Batch = dict[str, Any]


class Buffer:
    """The items of one turn: the first ones, and how many there were. `decoded`: events of this turn whose body was
    compared with the filter; `unexamined`: those that may match it and were not decoded."""

    __slots__ = ("_characters", "decoded", "items", "seen", "unexamined")

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self.items: list[activity.Item] = []
        self.seen = self.decoded = self.unexamined = self._characters = 0

    @property
    def is_full(self) -> bool:
        return len(self.items) >= ITEMS_PER_TURN or self._characters >= BATCH_CHARACTERS

    def add(self, item: activity.Item) -> None:
        self.seen += 1
        if not self.is_full:
            self.items.append(item)
            self._characters += len(item.get("data", ""))

    def take(self) -> Batch | None:
        batch: Batch = {"items": self.items, "seen": self.seen}
        if self.unexamined:
            batch["unexamined"] = self.unexamined
        elif not self.seen:
            self.decoded = 0
            return None
        self._clear()
        return batch


class _Watch:
    """The lease of a tail, in a worker that serves it."""

    __slots__ = ("buffer", "filter", "mailbox", "until")

    def __init__(self, filter_: filters.Filter, mailbox: str) -> None:
        self.filter = filter_
        self.mailbox = mailbox
        self.until = 0.0  # monotonic
        self.buffer = Buffer()


class Watches:
    """The tails that this worker serves, for its own pages and for those of other workers."""

    def __init__(self, hub: hubs.Hub, worker: str) -> None:
        self._hub = hub
        self._worker = worker
        self._watches: dict[str, _Watch] = {}
        self._timer: asyncio.TimerHandle | None = None
        hub.on_control(WATCH, self._on_watch)

    def _on_watch(self, _app: str, body: bytes) -> None:
        wanted = orjson.loads(body)
        known = self._watches.get(wanted["id"])
        if wanted["filter"] is None:
            self._watches.pop(wanted["id"], None)
            self._adjust()
            return
        if known is None:
            if len(self._watches) >= MOST_WATCHES:
                self._hub.count("console.watches_refused")
                return
            known = self._watches[wanted["id"]] = _Watch(filters.Filter.from_json(wanted["filter"]), wanted["to"])
        known.until = time.monotonic() + LEASE_S
        if known.filter.channel and "*" not in known.filter.channel and known.filter.apps:
            for app in known.filter.apps:  # of a chosen channel every event is traced
                self._hub.recorder.trace(app, known.filter.channel, LEASE_S)
        self._adjust()
        if wanted.get("confirm"):
            self._send(wanted["id"], known, {"items": [], "seen": 0, "confirms": True})

    def _adjust(self) -> None:
        self._hub.activity.tap = self._tap if self._watches else None
        if self._watches and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(TURN_S, self._turn)

    def _tap(self, item: activity.Item) -> None:
        for watch in self._watches.values():
            if watch.filter.takes(item):
                watch.buffer.add(item)

    def _turn(self) -> None:
        self._timer = None
        now = time.monotonic()
        for name, watch in list(self._watches.items()):
            batch = watch.buffer.take()
            if batch is not None:
                self._send(name, watch, batch)
            if watch.until < now:
                del self._watches[name]
        self._adjust()

    def _send(self, name: str, watch: _Watch, batch: Batch) -> None:
        body = orjson.dumps({"tail": name, "worker": self._worker, **batch}, default=str)
        self._hub.engine.post(interface.Publication("", watch.mailbox, body, interface.Kind.MESSAGE), self._not_sent)

    def _not_sent(self, _reason: str) -> None:
        self._hub.count("console.batches_lost")
