"""stream(): one message of a channel that grows, such as the answer of a language model.

    async with fanfare.stream("private-chat-7", "answer", meta={"by": "assistant"}) as answer:
        async for token in model:
            await answer.append(token)

and in code without an event loop:

    with fanfare.stream("private-chat-7", "answer") as answer:
        for token in model:
            answer.append(token)

`append` only puts the text into a buffer. One thread of the process, the flusher, writes what all streams of the
process have gathered in a window (40 ms by default), in one commit. So a token costs a producer a microsecond, and 150
tokens a second of one stream cost 25 events.

At the end of the block the stream is `done`, after an exception `failed`, and after the cancellation of its task
`interrupted`. A producer that dies leaves it `interrupted` after its lease.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import threading
import time
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Final, NamedTuple

import orjson
from asgiref.sync import sync_to_async

from fanfare import errors
from fanfare.applications import registry
from fanfare.engine import errors as engine_errors
from fanfare.engine import interface
from fanfare.hub import streams as wire
from fanfare.integration import payloads, publishing, remote, target
from fanfare.protocol import names, publications, refusals
from fanfare.protocol import streams as rules

logger = logging.getLogger(__name__)

__all__ = ["AsyncStream", "Stream", "acancel_stream", "cancel_stream", "stream"]

logger = logging.getLogger("fanfare.integration")

State = interface.StreamState

BUFFERED: Final = 65_536  # UTF-16 code units that wait for the flusher; then `append` waits too
RETRY_S: Final = 0.25  # between two tries while the log cannot be written
GIVE_UP_S: Final = 30.0  # then a stream that cannot be written fails
END_S: Final = 10.0  # that the end of the block waits for the log
RENEWALS: Final = 3  # of a lease, in its time


class stream:  # noqa: N801  (used like a function)
    """A message of `channel` that grows: `with` in a view or a task, `async with` in a coroutine.

    `event`: the name of its events. `id`: 1 to 100 letters, digits and `_ - = @ , . ; :`, by default a random one; a
    stream that is open, failed or interrupted goes on where it was. `meta`: what a page needs beside the text, as JSON.
    `app`: an application or its id, by default the project's default application.

    Raises a PublishError for a wrong argument; StreamClosed for an id whose stream is done, StreamCancelled for a
    cancelled one, TooManyStreams, and EngineUnavailable.
    """

    def __init__(
        self,
        channel: str,
        event: str,
        *,
        id: str | None = None,  # noqa: A002  (what it is called everywhere)
        meta: Any = None,
        app: target.App = None,
    ) -> None:
        self._arguments = (channel, event, id, meta, app)
        self._producer: Producer  # once the block was entered

    def __enter__(self) -> Stream:
        publishing.refuse_event_loop("with fanfare.stream", "async with fanfare.stream")
        self._producer = _prepare(*self._arguments)
        self._producer.open()
        return Stream(self._producer)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        ended = self._producer.end_after(error)
        if ended is not None:
            _result(ended, error)

    async def __aenter__(self) -> AsyncStream:
        # The database belongs to the thread of this context; the log must not hold it up.
        producer = await sync_to_async(_prepare, thread_sensitive=True)(*self._arguments)
        await sync_to_async(producer.open, thread_sensitive=False)()
        self._producer = producer
        return AsyncStream(producer)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        ended = self._producer.end_after(error)
        if ended is None:
            return
        if isinstance(error, asyncio.CancelledError):
            return  # the flusher goes on; the loop may be about to close
        await asyncio.wait({asyncio.wrap_future(ended)}, timeout=END_S)
        _result(ended, error, timeout_s=0)


def _result(ended: Future[None], error: BaseException | None, timeout_s: float = END_S) -> None:
    """Raise why the stream could not be ended, unless the block raises already."""
    try:
        ended.result(timeout_s)
    except (errors.FanfareError, TimeoutError) as failure:
        if error is None:
            if isinstance(failure, TimeoutError):
                raise engine_errors.EngineUnavailable(
                    f"The log did not take the end of the stream within {END_S:g} s; it is still being tried."
                ) from None
            raise


class _Handle:
    """What producers of both kinds can read and do at once."""

    def __init__(self, producer: Producer) -> None:
        self._producer = producer

    @property
    def id(self) -> str:
        return self._producer.where.id

    @property
    def text(self) -> str:
        """Everything that was appended, also by an earlier producer."""
        return self._producer.text

    @property
    def seq(self) -> int:
        """The number of the newest token."""
        return self._producer.seq

    @property
    def is_resumed(self) -> bool:
        """Whether an earlier producer has begun the stream."""
        return self._producer.is_resumed

    @property
    def is_cancelled(self) -> bool:
        return isinstance(self._producer.failure, errors.StreamCancelled)

    def restart(self) -> None:
        """Drop the text: the next append begins anew, with the number 1."""
        self._producer.restart()

    def fail(self, error: str) -> None:
        """End the stream as failed, with a message for its readers. Later appends raise StreamClosed."""
        self._producer.end(State.FAILED, error)

    def done(self) -> None:
        """End the stream before the end of the block."""
        self._producer.end(State.DONE)

    def cancel(self) -> None:
        """End the stream as cancelled."""
        self._producer.end(State.CANCELLED)


class Stream(_Handle):
    """In a `with` block."""

    def append(self, text: str, seq: int | None = None) -> None:
        """Add text. `seq`: the token's number, 1, 2, 3, …; a token that the stream has already is dropped, so a task
        that is run again may send all of them again. By default the next number.

        Raises StreamCancelled, StreamClosed, StreamConflict, StreamTooLong, and EngineUnavailable where the log could
        not be written for 30 s.
        """
        self._producer.append(text, seq)
        while self._producer.is_full:
            time.sleep(0.005)


class AsyncStream(_Handle):
    """In an `async with` block."""

    async def append(self, text: str, seq: int | None = None) -> None:
        """See `Stream.append`."""
        self._producer.append(text, seq)
        while self._producer.is_full:  # noqa: ASYNC110  (the flusher is a thread)
            await asyncio.sleep(0.005)


# -- ending from outside -----------------------------------------------------------------------------------------------


def cancel_stream(channel: str, stream_id: str, *, app: target.App = None) -> bool:
    """Cancel a stream: its producer's next append raises StreamCancelled. False: no such stream is open.

    Raises InvalidName, NoApplication, EngineUnavailable, CalledOnEventLoop.
    """
    publishing.refuse_event_loop("cancel_stream", "acancel_stream")
    return _cancel(target.application(app), channel, stream_id)


async def acancel_stream(channel: str, stream_id: str, *, app: target.App = None) -> bool:
    """`cancel_stream` for coroutines."""
    application = await sync_to_async(target.application)(app)
    return await sync_to_async(_cancel, thread_sensitive=False)(application, channel, stream_id)


def _cancel(application: registry.Application, channel: str, stream_id: str) -> bool:
    _check(application, channel, "cancel", stream_id)
    where = interface.StreamName(application.id, channel, stream_id)
    engine = target.engine()
    if isinstance(engine, remote.RemoteEngine):
        return engine.cancel_stream(where)
    before = rules.end_blocking(engine, application, where, State.CANCELLED)
    return before is not None and before.state is State.OPEN


# -- the producer ------------------------------------------------------------------------------------------------------


def _check(application: registry.Application, channel: str, event: str, stream_id: str | None) -> None:
    for what, name in (("channel", channel), ("event", event)):
        if not isinstance(name, str):
            raise errors.InvalidName(f"The {what} is of type {type(name).__name__}; it must be a str.")
    try:
        publications.check_channel_name(channel, application.limits)
        publications.check_event_name(event, application.limits)
        rules.check_channel(channel)
        if stream_id is not None:
            rules.check_id(stream_id)
    except refusals.PusherError as error:
        raise errors.InvalidName(f"{error}.") from error


def _prepare(channel: str, event: str, stream_id: str | None, meta: Any, app: target.App) -> Producer:
    application = target.application(app)
    _check(application, channel, event, stream_id)
    try:
        meta = None if meta is None else orjson.loads(payloads.json_text(meta))
    except TypeError as error:
        raise errors.UnencodableData(f"The meta of the stream has no JSON form: {error}.") from error
    return Producer(application, channel, event, stream_id=stream_id, meta=meta)


class _Taken(NamedTuple):
    text: str
    seq: int
    replaces: bool


class Producer:
    """The state of one stream in this process. `append` and `end` are called by the producer's thread or loop,
    `take` and `settle` by the flusher."""

    def __init__(
        self, application: registry.Application, channel: str, event: str, *, stream_id: str | None, meta: Any
    ) -> None:
        self.engine = target.engine()
        self.is_known = stream_id is not None
        self.where = interface.StreamName(application.id, channel, stream_id or secrets.token_hex(8))
        self.is_encrypted = names.is_encrypted(channel)
        self.head = wire.Head(event, meta, self._closings() if self.is_encrypted else None)
        self.limits = rules.limits()
        self.window_s = rules.window_s(application, channel)
        self.retention = rules.retention(application, channel)
        self.is_resumed = False
        self.failure: errors.FanfareError | None = None
        self.seq = 0  # of the newest token
        self.written_s = 0.0  # monotonic: when the stream was last written
        self.due_s: float | None = None  # monotonic: when there is something to write
        self._lock = threading.Lock()
        self._pieces: list[str] = []  # the text that is written
        self._pending: list[str] = []
        self._pending_units = 0
        self._acked_seq = 0
        self._acked_units = 0
        self._replaces = False
        self._ending: tuple[State, str | None] | None = None
        self._ended: Future[None] = Future()
        # The write under way: text, number, whether it drops the text before. It is repeated as it is until the log
        # has answered, since it may be done already.
        self._taken: _Taken | None = None
        self._failed_since_s: float | None = None

    def _closings(self) -> dict[str, str]:
        """The events that end an encrypted stream while its producer cannot: the server has no key."""
        return {
            state.name.lower(): self._sealed(wire.data(self.where.id, 0, None, "", state))
            for state in (State.CANCELLED, State.INTERRUPTED)
        }

    def _sealed(self, data: str) -> str:
        return payloads.encrypt(self.where.channel, data)

    @property
    def text(self) -> str:
        with self._lock:
            taken = "" if self._taken is None else self._taken.text
            return "".join([*self._pieces, taken, *self._pending])

    @property
    def is_full(self) -> bool:
        if self.failure is not None:
            raise self.failure
        return self._pending_units > BUFFERED

    # -- beginning -----------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Blocks. Raises StreamError, EngineError."""
        found = self._find() if self.is_known else None
        while True:
            if found is None:
                receipt = self._write(self._opening(after=0))
            elif found.state is State.OPEN:
                self._adopt(found)
                break
            elif found.state in interface.RESUMABLE:
                self._adopt(found)
                receipt = self._write(self._opening(after=found.seq))
            else:
                raise _closed(found.state, self.where)
            if receipt.done:
                break
            if receipt.limit is not None:
                raise errors.TooManyStreams(receipt.actual or 0, receipt.limit)
            found = self._find()  # another producer has opened it meanwhile
        self.written_s = time.monotonic()
        flusher().add(self)

    def _find(self) -> interface.Streamed | None:
        with self.engine.queries() as asked:
            return asked.stream(*self.where)

    def _write(self, write: interface.StreamWrite) -> interface.StreamReceipt:
        [receipt] = self.engine.write_streams([write])
        return receipt

    def _adopt(self, found: interface.Streamed) -> None:
        """Go on with the text of an earlier producer."""
        self.is_resumed = True
        text = self._decrypted(found) if self.is_encrypted else wire.text_of(found)
        self._pieces = [text]
        self.seq = self._acked_seq = found.seq
        self._acked_units = wire.units(text)

    def _decrypted(self, found: interface.Streamed) -> str:
        pieces = [part.decode() for part in found.parts]
        if not pieces and found.body is not None:
            pieces = [orjson.loads(found.body)["data"]]
        text = ""
        for piece in pieces:
            fields = orjson.loads(payloads.decrypt(self.where.channel, piece))
            # Python counts characters and the event UTF-16 code units.
            text = text.encode("utf-16-le")[: 2 * fields["at"]].decode("utf-16-le") + fields["text"]
        return text

    def _opening(self, *, after: int) -> interface.StreamWrite:
        text = "".join(self._pieces)
        data = None
        if self.is_encrypted:
            data = self._sealed(wire.data(self.where.id, self._acked_seq, 0, text, State.OPEN, meta=self.head.meta))
        part = data.encode() if data is not None else None
        return rules.opening(self.where, self.head, data=data, text=text, part=part, after=after, seq=self._acked_seq)

    # -- the producer's side -------------------------------------------------------------------------------------------

    def append(self, text: str, seq: int | None) -> None:
        with self._lock:
            if self.failure is not None:
                raise self.failure
            if self._ending is not None:
                raise errors.StreamClosed("The stream was ended before this append.")
            if seq is not None:
                if seq <= self.seq:
                    return
                if seq != self.seq + 1:
                    raise errors.StreamConflict(
                        f"The token number {seq} follows {self.seq}: {self.seq + 1} was left out.", self.seq + 1, seq
                    )
            units = wire.units(text)
            length = self._acked_units + self._taken_units() + self._pending_units + units
            if length > self.limits.length:
                raise errors.StreamTooLong(length, self.limits.length)
            self.seq += 1
            self._pending.append(text)
            self._pending_units += units
            is_first = self.due_s is None
            if is_first:
                self.due_s = max(time.monotonic(), self.written_s + self.window_s)
        if is_first:
            flusher().wake(self)

    def _taken_units(self) -> int:
        return 0 if self._taken is None else wire.units(self._taken.text)

    def restart(self) -> None:
        with self._lock:
            self._pending, self._pending_units = [], 0
            self._pieces = []
            self._acked_units = 0
            self.seq = 0
            self._replaces = True
            if self._taken is not None:  # its text is dropped by the next write
                self._taken = _Taken("", self._taken.seq, replaces=False)

    def end(self, state: State, error: str | None = None) -> None:
        with self._lock:
            if self._ending is None and self.failure is None:
                self._ending = state, error
                self.due_s = time.monotonic()
        flusher().wake(self)

    def end_after(self, error: BaseException | None) -> Future[None] | None:
        """End the stream at the end of its block. None: it was cancelled, and the block knows."""
        if isinstance(error, errors.StreamCancelled):
            return None
        if error is None:
            self.end(State.DONE)
        elif isinstance(error, Exception):
            self.end(State.FAILED)
        else:  # the task was cancelled, the process is ending
            self.end(State.INTERRUPTED)
        if self.failure is not None and not self._ended.done():
            self._ended.set_exception(self.failure)
        return self._ended

    # -- the flusher's side --------------------------------------------------------------------------------------------

    def wakes_s(self) -> float:
        """When there is something to do, monotonic."""
        renewal_s = self.written_s + self.limits.lease_s / RENEWALS
        due_s = self.due_s
        return renewal_s if due_s is None else min(renewal_s, due_s)

    def take(self, now: float) -> list[interface.StreamWrite]:
        """The writes that are due."""
        with self._lock:
            self.due_s = None
            self.written_s = now
            if self._taken is None:
                self._taken = _Taken("".join(self._pending), self.seq, self._replaces)
                self._pending, self._pending_units = [], 0
            taken = self._taken
            is_last = self._ending is not None and not self._pending
            writes = [] if is_last and not taken.text and not taken.replaces else [self._piece(taken)]
            if self._ending is not None and is_last:
                writes.append(self._end(taken, *self._ending))
            return writes

    def _piece(self, taken: _Taken) -> interface.StreamWrite:
        data = None
        if self.is_encrypted:
            fields = wire.data(self.where.id, taken.seq, self._acked_units, taken.text, State.OPEN, meta=self.head.meta)
            data = self._sealed(fields)
        write = rules.piece(
            self.where,
            self.head,
            taken.text,
            after=self._acked_seq,
            seq=taken.seq,
            at=self._acked_units,
            lease_s=self.limits.lease_s,
            data=data,
            replaces=taken.replaces,
        )
        return write if taken.text or taken.replaces else write._replace(part=b"", body=b"")  # it renews the lease

    def _end(self, taken: _Taken, state: State, error: str | None) -> interface.StreamWrite:
        whole = "".join([*self._pieces, taken.text])
        data = wire.data(self.where.id, taken.seq, 0, whole, state, meta=self.head.meta, error=error)
        return rules.ended(
            self.where,
            self.head,
            self._sealed(data) if self.is_encrypted else data,
            after=taken.seq,
            size=wire.units(whole),
            state=state,
            retention=self.retention,
            keep_s=self.limits.keep_s,
        )

    def settle(self, writes: list[interface.StreamWrite], receipts: list[interface.StreamReceipt]) -> None:
        """The answer to `take`. Raises EngineError."""
        for write, receipt in zip(writes, receipts, strict=True):
            if not receipt.done and not _was_done(write, receipt) and not _was_done(writes[-1], receipt):
                self._refused(receipt)
                return
        has_ended = writes[-1].state is not State.OPEN
        with self._lock:
            self._failed_since_s = None
            if self._taken is not None:
                self._pieces.append(self._taken.text)
                self._acked_seq = self._taken.seq
                self._acked_units += wire.units(self._taken.text)
                self._replaces &= not self._taken.replaces
                self._taken = None
            if not has_ended and (self._pending or self._replaces or self._ending is not None):
                now = time.monotonic()
                self.due_s = now if self._ending is not None else max(now, self.written_s + self.window_s)
            if has_ended:
                self.failure = self.failure or errors.StreamClosed("The stream was ended before this append.")
        if has_ended:
            flusher().remove(self)
            if not self._ended.done():
                self._ended.set_result(None)

    def _refused(self, receipt: interface.StreamReceipt) -> None:
        """The stream is not as this producer left it. Raises EngineError."""
        if receipt.state is None or receipt.state in interface.RESUMABLE:
            # The log was lost, or this process stood still for longer than its lease: open it with the whole text.
            receipt = self._write(self._opening(after=receipt.seq))
            if receipt.done:
                self.due_s = time.monotonic()
                return
        if receipt.state is State.OPEN:
            self.fail(
                errors.StreamConflict(
                    f"Another producer appends to the stream {self.where.id}: its number is {receipt.seq}, and this "
                    f"one left it at {self._acked_seq}.",
                    self._acked_seq,
                    receipt.seq,
                )
            )
        else:
            self.fail(_closed(receipt.state or State.CANCELLED, self.where))

    def postpone(self, error: Exception) -> None:
        """The stream could not be written: try again soon, if the log is away."""
        now = time.monotonic()
        self._failed_since_s = self._failed_since_s or now
        self.due_s = now + RETRY_S
        if not isinstance(error, errors.FanfareError):
            logger.error("The stream %s on %s failed", self.where.id, self.where.channel, exc_info=error)
            self.fail(errors.StreamError(f"The stream {self.where.id} failed: {error!r}"))
        elif now - self._failed_since_s > GIVE_UP_S or not isinstance(error, engine_errors.EngineUnavailable):
            self.fail(error)

    def fail(self, error: errors.FanfareError) -> None:
        """Later appends raise this."""
        flusher().remove(self)
        self.failure = error
        if not self._ended.done():
            self._ended.set_exception(error)


def _was_done(write: interface.StreamWrite, receipt: interface.StreamReceipt) -> bool:
    """Whether an earlier try of this write was done, and its answer was lost."""
    return (receipt.state, receipt.seq, receipt.size) == (write.state, write.seq, write.size)


def _closed(state: State, where: interface.StreamName) -> errors.StreamError:
    if state is State.CANCELLED:
        return errors.StreamCancelled(f"The stream {where.id} on {where.channel} was cancelled.")
    return errors.StreamClosed(f"The stream {where.id} on {where.channel} is {state.name.lower()}.")


class Flusher:
    """Writes the streams of this process, in a thread of its own."""

    def __init__(self) -> None:
        self._producers: set[Producer] = set()
        self._changed = threading.Condition()
        self._wakes_s = float("inf")
        threading.Thread(target=self._run, name="fanfare-streams", daemon=True).start()

    def add(self, producer: Producer) -> None:
        with self._changed:
            self._producers.add(producer)
            self._changed.notify()

    def remove(self, producer: Producer) -> None:
        with self._changed:
            self._producers.discard(producer)

    def wake(self, producer: Producer) -> None:
        """Something is due earlier than the flusher would look."""
        with self._changed:
            if producer.wakes_s() < self._wakes_s:
                self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                now = time.monotonic()
                self._wakes_s = min((producer.wakes_s() for producer in self._producers), default=float("inf"))
                if self._wakes_s > now:
                    self._changed.wait(min(self._wakes_s - now, 3600.0))
                    continue
                due = [producer for producer in self._producers if producer.wakes_s() <= now]
            try:
                self._flush(due, now)
            except Exception as error:
                # All streams of the process share this thread. Those of this turn fail, and the others go on.
                logger.exception("%d streams could not be written", len(due))
                reason = engine_errors.EngineUnavailable(f"The stream could not be written: {error!r}")
                for producer in due:
                    producer.fail(reason)

    def _flush(self, due: list[Producer], now: float) -> None:
        """Write them, those of one engine in one call."""
        by_engine: dict[int, list[tuple[Producer, list[interface.StreamWrite]]]] = {}
        for producer in due:
            by_engine.setdefault(id(producer.engine), []).append((producer, producer.take(now)))
        for taken in by_engine.values():
            engine = taken[0][0].engine
            try:
                receipts = engine.write_streams([write for _, writes in taken for write in writes])
            except Exception as error:  # noqa: BLE001  (the thread serves all streams of the process)
                for producer, _ in taken:
                    producer.postpone(error)
                continue
            start = 0
            for producer, writes in taken:
                end = start + len(writes)
                try:
                    producer.settle(writes, receipts[start:end])
                except Exception as error:  # noqa: BLE001
                    producer.postpone(error)
                start = end


_flushers: dict[int, Flusher] = {}  # by process
_flushers_lock = threading.Lock()


def flusher() -> Flusher:
    """That of this process: a thread does not survive a fork."""
    found = _flushers.get(os.getpid())
    if found is None:
        with _flushers_lock:
            found = _flushers.get(os.getpid())
            if found is None:
                _flushers.clear()
                found = _flushers[os.getpid()] = Flusher()
    return found
