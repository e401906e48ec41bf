"""The live tail: what happens in all workers, as it happens, for the pages and commands that look.

Events are read from the log by the worker that serves the page, so it sees those of every publisher, also on channels
without subscribers. Everything else is of one worker's connections: each worker sends what the filter takes to the
mailbox of the page's worker, while that worker renews the lease every `RENEW_S` seconds (`fanfare.console.watches`).

A tail has begun when the worker of the page reads every partition of the log and every worker has confirmed its tap.
Until then it may miss items, so its page is not called live.

A tail shows at most `watches.ITEMS_PER_S` of what its filter takes. If there is more, the items are a sample, and each
batch says how many there were. A filter of event names or of a text decodes the events that may match, until a turn has
its items, and at most `DECODED_PER_TURN` a turn over all tails; each batch says how many more may match. Pages with
equal filters share one tail, and one encoding of each batch. While a worker has more than `CROWD` pages, a turn takes
twice as long, and shows as many items.
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

from fanfare.console import filters, member_history, watches
from fanfare.engine import errors as engine_errors
from fanfare.engine import interface
from fanfare.hub import activity, traces
from fanfare.hub import hub as hubs
from fanfare.runtime.backoff import Backoff
from fanfare.runtime.log_throttle import LogThrottle

throttled = LogThrottle(logging.getLogger(__name__))

RENEW_S: Final = 5.0
BEGIN_S: Final = 3.0  # for the readers of the log and for the other workers
ASK_S: Final = 0.5  # between two requests to confirm the tap
CROWD: Final = 20  # pages of a worker
MOST_TAILS: Final = 20  # with different filters, in one worker
QUEUED_BATCHES: Final = 40  # for one page: 10 s
KEEP_S: Final = interface.TRANSIENT_SECONDS / 3  # the log's interest in the kinds of a tail is renewed so often
READ_ENTRIES: Final = 2_000
READ_BYTES: Final = 8 * 1024 * 1024  # of one read, about
DECODED_PER_TURN: Final = 400  # events, 15 µs each: 2.4 % of a core
DATA_CHARACTERS: Final = 20_000  # of an event's data; the size is shown with it
TAKERS_KEPT: Final = 10_000  # channels whose tails are known, about 3 MB

_EMPTY: Final = b'{"items":[],"seen":0}\n'


class TooManyTails(Exception):
    """The worker has `MOST_TAILS` with other filters."""


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
        self.buffer = watches.Buffer()  # of events, from the log
        self.confirmed: dict[str, float] = {}  # by worker: when it last confirmed its tap, monotonic
        self.has_begun = asyncio.Event()
        self.reads_log = False
        self.missing = 0
        self.renew_at = 0.0  # monotonic

    def put(self, batch: watches.Batch) -> None:
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
        self._watches = watches.Watches(hub, worker)
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
        return watches.TURN_S * 2 if sum(len(tail.pages) for tail in self._tails.values()) > CROWD else watches.TURN_S

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
        self._hub.engine.post(
            interface.Publication("", watches.WATCH, body, interface.Kind.CONTROL), lambda _reason: None
        )

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
        oldest = time.monotonic() - watches.LEASE_S
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
                await asyncio.sleep(watches.TURN_S)
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
