"""The live tail: what happens in all workers, as it happens, for the pages and commands that look.

Events are read from the log by the worker that serves the page, so it sees those of every publisher, also on channels
without subscribers. Everything else is of one worker's connections. Interest in it is a lease: the page's worker sends
the command `tail.watch` every `RENEW_S` seconds, and each worker then has a tap (`fanfare.hub.activity`), which sends
what the filter takes to the mailbox of the page's worker. Without a lease no worker has a tap.

A tail has begun when the worker of the page reads every partition of the log and every worker has confirmed its tap.
Until then it may miss items, so its page is not called live.

A tail shows at most `ITEMS_PER_S` of what its filter takes. If there is more, the items are a sample, and each batch
says how many there were. A filter of event names or of a text decodes the events that may match, until a turn has its
items, and at most `DECODED_PER_TURN` a turn over all tails; each batch says how many more may match. Pages with equal
filters share one tail, and one encoding of each batch. While a worker has more than `CROWD` pages, a turn takes twice
as long, and shows as many items.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

import orjson

from fanfare.console import filters, member_history
from fanfare.engine import errors as engine_errors
from fanfare.engine import interface
from fanfare.hub import activity, traces
from fanfare.hub import hub as hubs
from fanfare.runtime.backoff import Backoff
from fanfare.runtime.log_throttle import LogThrottle

throttled = LogThrottle(logging.getLogger(__name__))

WATCH: Final = "tail.watch"
RENEW_S: Final = 5.0
BEGIN_S: Final = 3.0  # for the readers of the log and for the other workers
ASK_S: Final = 0.5  # between two requests to confirm the tap
LEASE_S: Final = 15.0
TURN_S: Final = 0.25  # between two batches
CROWD: Final = 20  # pages of a worker
ITEMS_PER_S: Final = 100  # of a tail, of each worker and of the log
ITEMS_PER_TURN: Final = int(ITEMS_PER_S * TURN_S)
MOST_TAILS: Final = 20  # with different filters, in one worker
MOST_WATCHES: Final = 200  # of all workers, in one worker
QUEUED_BATCHES: Final = 40  # for one page: 10 s
KEEP_S: Final = interface.TRANSIENT_SECONDS / 3  # the log's interest in the kinds of a tail is renewed so often
READ_ENTRIES: Final = 2_000
READ_BYTES: Final = 8 * 1024 * 1024  # of one read, about
DECODED_PER_TURN: Final = 400  # events, 15 µs each: 2.4 % of a core
BATCH_CHARACTERS: Final = 100_000  # of the data of a turn's items; the first item is always among them
DATA_CHARACTERS: Final = 20_000  # of an event's data; the size is shown with it
TAKERS_KEPT: Final = 10_000  # channels whose tails are known, about 3 MB

Batch = dict[str, Any]
_EMPTY: Final = b'{"items":[],"seen":0}\n'


class TooManyTails(Exception):
    """The worker has `MOST_TAILS` with other filters."""


class _Buffer:
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
        self.buffer = _Buffer()


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


class Page:
    """One reader of a tail. A slow reader loses batches; the next one says how many items were in them, `missed`, and
    the state of the tail, which one of them may have told."""

    def __init__(self, tail: Tail) -> None:
        self._tail = tail
        self._lines: collections.deque[tuple[int, bytes]] = collections.deque()  # with the number of their items
        self._changed = asyncio.Event()
        self._missed: int | None = None  # None: no batch was lost since the last one
        self._ended = False
        self.is_begun = False

    async def begin(self, within_s: float) -> dict[str, Any]:
        """Wait until the tail has begun. `reads_log`: whether events are read; `missing`: how many workers have not
        confirmed their tap."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._tail.has_begun.wait()
        self.is_begun = True
        return self._tail.state()

    def put(self, seen: int, line: bytes) -> None:
        if len(self._lines) == QUEUED_BATCHES:
            self._missed = (self._missed or 0) + self._lines.popleft()[0]
        self._lines.append((seen, line))
        self._changed.set()

    def end(self) -> None:
        self._ended = True
        self._changed.set()

    async def next(self, within_s: float) -> bytes | None:
        """The next batch as a line of JSON, or an empty one after `within_s` seconds; None after the end."""
        if not self._lines and not self._ended:
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(within_s):
                    await self._changed.wait()
        if not self._lines:
            return None if self._ended else _EMPTY
        (_, line), missed, self._missed = self._lines.popleft(), self._missed, None
        if missed is None:
            return line
        return orjson.dumps({"missed": missed, **self._tail.state()})[:-1] + b"," + line[1:]


class Tail:
    """What the pages with one filter share. `reads_log`: events are read, or the filter takes none. `missing`: how many
    workers have not confirmed their tap. `Tails._check` sets both."""

    __slots__ = (
        *("buffer", "confirmed", "filter", "has_begun", "kinds", "missing", "name", "pages", "reads_log", "renew_at"),
    )

    def __init__(self, name: str, filter_: filters.Filter) -> None:
        self.name = name
        self.filter = filter_
        self.kinds = filter_.kinds
        self.pages: set[Page] = set()
        self.buffer = _Buffer()  # of events, from the log
        self.confirmed: dict[str, float] = {}  # by worker: when it last confirmed its tap, monotonic
        self.has_begun = asyncio.Event()
        self.reads_log = False
        self.missing = 0
        self.renew_at = 0.0  # monotonic

    def put(self, batch: Batch) -> None:
        line = orjson.dumps(batch) + b"\n"
        for page in self.pages:
            page.put(batch["seen"], line)

    def state(self) -> dict[str, Any]:
        return {"reads_log": self.reads_log, "missing": self.missing}

    def put_state(self) -> None:
        """Tell the pages that have begun. Those that begin get the state then."""
        line = orjson.dumps({"items": [], "seen": 0, **self.state()}) + b"\n"
        for page in self.pages:
            if page.is_begun:
                page.put(0, line)


class Tails:
    """The tails of the pages that this worker serves."""

    def __init__(self, hub: hubs.Hub, worker: str) -> None:
        self._hub = hub
        self._worker = worker
        self._watches = Watches(hub, worker)
        self._mailbox = f"#tail-{worker}"
        self._tails: dict[str, Tail] = {}  # by the key of the filter
        self._by_name: dict[str, Tail] = {}
        self._takers: dict[tuple[str, str, int], tuple[Tail, ...]] = {}  # see `_takers_of`
        self._reading: set[int] = set()  # partitions whose new entries are read
        self._running = False

    @property
    def count(self) -> int:
        return len(self._tails)

    @property
    def _turn_s(self) -> float:
        return TURN_S * 2 if sum(len(tail.pages) for tail in self._tails.values()) > CROWD else TURN_S

    @contextlib.asynccontextmanager
    async def open(self, filter_: filters.Filter) -> AsyncIterator[Page]:
        """A page of the tail with this filter, while the block runs. Raises TooManyTails."""
        tail = self._tails.get(filter_.key)
        if tail is None:
            if len(self._tails) >= MOST_TAILS:
                raise TooManyTails
            tail = Tail(secrets.token_hex(8), filter_)
            self._tails[filter_.key] = self._by_name[tail.name] = tail
            self._takers.clear()
        page = Page(tail)
        tail.pages.add(page)
        self._start()
        if len(tail.pages) == 1:
            self._renew(tail)
        try:
            yield page
        finally:
            tail.pages.discard(page)
            if not tail.pages:
                self._tails.pop(filter_.key, None)
                self._by_name.pop(tail.name, None)
                self._takers.clear()
                self._post({"id": tail.name, "filter": None})

    def renew(self) -> None:
        """Renew all leases: a worker has started that knows none of them."""
        for tail in self._tails.values():
            self._renew(tail)

    def resume(self) -> None:
        """Go on after the hub has gone over to another store, which ended the tasks of the tails."""
        if self._tails:
            self._start()
            self.renew()

    def stop(self) -> None:
        """End all pages: the worker is about to wait for their responses."""
        for tail in list(self._tails.values()):
            for page in list(tail.pages):
                page.end()

    def _start(self) -> None:
        if self._running:
            return
        self._running = True
        self._hub.on_message(self._mailbox, self._on_items)
        self._hub.supervisor.spawn("live tail", self._run())

    async def _run(self) -> None:
        """Renew the leases and read the log while there are pages, and the log is not moved to another store."""
        engine = self._hub.engine
        self._reading = reading = set[int]()  # of its own: the readers before may still be ending
        readers = [
            self._hub.supervisor.spawn(f"live tail: partition {partition}", self._read_log(partition, reading))
            for partition in range(engine.partitions)
        ]
        try:
            while self._tails and self._hub.engine is engine:
                await asyncio.sleep(self._turn_s)
                for tail in list(self._tails.values()):
                    batch = tail.buffer.take()
                    if batch is not None:
                        tail.put({"worker": self._worker, **batch})
                    if time.monotonic() >= tail.renew_at:
                        self._renew(tail)
        finally:
            self._running = False
            for reader in readers:
                reader.cancel()
            self._reading = set()
            self._hub.ignore(self._mailbox)
            for tail in self._tails.values():
                tail.confirmed.clear()
                self._check(tail)
        if self._tails:  # the log was moved, or a page came while the last one ended
            self._start()

    def _renew(self, tail: Tail) -> None:
        """Renew the lease of a tail in all workers, which confirm it."""
        self._check(tail)
        tail.renew_at = time.monotonic() + (ASK_S if tail.missing else RENEW_S)
        self._post({"id": tail.name, "filter": tail.filter.to_json(), "confirm": True})

    def _post(self, command: dict[str, Any]) -> None:
        body = orjson.dumps({"to": self._mailbox, **command})
        # Sent again in 5 s; a lease whose end could not be sent expires.
        self._hub.engine.post(interface.Publication("", WATCH, body, interface.Kind.CONTROL), lambda _reason: None)

    def _on_items(self, body: bytes) -> None:
        batch = orjson.loads(body)
        tail = self._by_name.get(batch.pop("tail"))
        if tail is None:
            return
        if batch.pop("confirms", False):
            tail.confirmed[batch["worker"]] = time.monotonic()
            self._check(tail)
        else:
            tail.put(batch)

    def _check(self, tail: Tail) -> None:
        """Update whether a tail has begun, for its pages."""
        before = tail.reads_log, tail.missing
        tail.reads_log = not tail.kinds or len(self._reading) == self._hub.engine.partitions
        oldest = time.monotonic() - LEASE_S
        tail.confirmed = {worker: at for worker, at in tail.confirmed.items() if at > oldest}
        tail.missing = max(0, int(self._hub.engine.statistics().get("workers", 1)) - len(tail.confirmed))
        if tail.reads_log and not tail.missing:
            tail.has_begun.set()
        if before != (tail.reads_log, tail.missing):
            tail.put_state()

    # -- events, from the log ------------------------------------------------------------------------------------------

    async def _read_log(self, partition: int, reading: set[int]) -> None:
        backoff = Backoff()
        while True:
            try:
                await self._follow(partition, reading)
            except engine_errors.EngineError as error:
                await self._failed(f"The log cannot be read: {error}", backoff)
            except Exception as error:  # noqa: BLE001  (without its reader, a page would show no event and no problem)
                throttled.error("The live tail's reader failed; it starts again", error=error)
                await self._failed("The log cannot be read: internal error", backoff)

    async def _failed(self, problem: str, backoff: Backoff) -> None:
        for tail in self._tails.values():
            if tail.kinds:
                tail.put({"items": [], "seen": 0, "problem": problem})
                self._check(tail)
        await asyncio.sleep(backoff.failed())

    async def _follow(self, partition: int, reading: set[int]) -> None:
        """Raises EngineError: the log is away, or was replaced."""
        while True:
            if not self._wants_entries:
                await asyncio.sleep(TURN_S)
                continue
            name = f"console-{self._worker}-{partition}"
            # All kinds: a reader that begins again for other kinds would miss what comes in between.
            consumer = await self._hub.engine.consume(name, partition, filters.KINDS, transient=True)
            reading.add(partition)
            for tail in self._tails.values():
                self._check(tail)
            keep_at = time.monotonic() + KEEP_S
            try:
                most = READ_ENTRIES
                while self._wants_entries:
                    if time.monotonic() >= keep_at:
                        keep_at = time.monotonic() + KEEP_S
                        await consumer.keep(consumer.position)
                    entries = await consumer.next(most, 1.0)
                    self._take(partition, entries)
                    if len(entries) < most:
                        await asyncio.sleep(self._turn_s / 2)
                    read = sum(len(entry.body) for entry in entries)
                    most = min(READ_ENTRIES, max(1, READ_BYTES * len(entries) // read) if read else READ_ENTRIES)
            finally:
                reading.discard(partition)
                consumer.close()

    @property
    def _wants_entries(self) -> bool:
        return any(tail.kinds for tail in self._tails.values())

    def _take(self, partition: int, entries: Sequence[interface.Entry]) -> None:
        searching = sum(tail.filter.needs_body for tail in self._tails.values())
        for entry in entries:
            found: activity.Item | None = None  # decoded for the first tail that wants it
            for tail in self._takers_of(entry):
                chosen, buffer = tail.filter, tail.buffer
                if not chosen.takes_rest(entry):
                    continue
                if not chosen.needs_body:  # an entry's kind tells its type
                    if buffer.is_full:
                        buffer.seen += 1  # counted, and not decoded
                    else:
                        found = found or item(partition, entry)
                        buffer.add(found)
                elif buffer.is_full or buffer.decoded * searching >= DECODED_PER_TURN:
                    buffer.unexamined += 1
                else:
                    buffer.decoded += 1
                    found = found or item(partition, entry)
                    if chosen.takes(found):
                        buffer.add(found)

    def _takers_of(self, entry: interface.Entry) -> tuple[Tail, ...]:
        """The tails whose filter takes this kind of entry of this channel, kept for the next entry of the channel."""
        key = entry.app, entry.channel, entry.kind
        takers = self._takers.get(key)
        if takers is None:
            if len(self._takers) >= TAKERS_KEPT:
                self._takers.clear()
            takers = ()
            if not entry.channel.startswith(member_history.PREFIX):
                takers = tuple(
                    tail
                    for tail in self._tails.values()
                    if entry.kind in tail.kinds and tail.filter.takes_channel(entry.app, entry.channel)
                )
            self._takers[key] = takers
        return takers


def item(partition: int, entry: interface.Entry) -> activity.Item:
    """An entry of the log as an item."""
    found: activity.Item = {
        "at": entry.created_ms / 1000 or time.time(),
        "type": filters.EVENT,
        "entry": traces.position(partition, entry.id),
        "app": entry.app,
        "channel": entry.channel,
    }
    if entry.user_id is not None:
        found["stream" if entry.kind == interface.Kind.STREAM_END else "user"] = entry.user_id
    if (type_ := filters.EVENTS.get(entry.kind)) is not None:
        found["type"] = type_
        if entry.body:
            _decode(found, entry.body)
        else:
            found["text"] = "replaced or deleted later"
    elif (text := filters.MEMBERS.get(entry.kind)) is not None:
        found["type"], found["text"] = filters.MEMBER, text
    else:
        found["type"] = filters.CHANNEL
        found["text"] = "occupied" if entry.kind == interface.Kind.OCCUPIED else "vacated"
    if entry.offset is not None:
        found["offset"] = entry.offset
    if entry.exclude is not None:
        found["exclude"] = entry.exclude
    return found


def _decode(found: activity.Item, body: bytes) -> None:
    try:
        frame = orjson.loads(body)
        data = frame["data"]
        text = data if isinstance(data, str) else orjson.dumps(data).decode()
        found["event"], found["data"], found["bytes"] = frame["event"], text[:DATA_CHARACTERS], len(text.encode())
    except (orjson.JSONDecodeError, KeyError, TypeError):
        found["event"], found["data"], found["bytes"] = "", body[:DATA_CHARACTERS].decode(errors="replace"), len(body)
