"""The state of a stream in the process of its producer: the appended text, and the part of it that is in the log."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from concurrent.futures import Future
from typing import Any, Final, NamedTuple

import orjson

from fanfare import errors
from fanfare.applications import registry
from fanfare.engine import errors as engine_errors
from fanfare.engine import interface
from fanfare.hub import streams as wire
from fanfare.integration import payloads, target
from fanfare.integration.stream_flusher import flusher
from fanfare.protocol import names
from fanfare.protocol import streams as rules

logger = logging.getLogger("fanfare.integration")

State = interface.StreamState

BUFFERED: Final = 65_536  # UTF-16 code units that wait for the flusher; then `append` waits too
RETRY_S: Final = 0.25  # between two tries while the log cannot be written
GIVE_UP_S: Final = 30.0  # after this time a stream that cannot be written fails
RENEWALS: Final = 3  # of a lease, within its time


class _Taken(NamedTuple):
    """A write. `at`: the length of the text before it. `is_dropped`: the text was begun again since."""

    text: str
    seq: int
    at: int
    replaces: bool
    is_dropped: bool = False

    @property
    def kept(self) -> str:
        return "" if self.is_dropped else self.text


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
        # The write under way. It is repeated as it is until the log has answered, since it may be done already.
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
            taken = "" if self._taken is None else self._taken.kept
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
                raise _closed(found.state, self.where, self._text_of(found))
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
        """Continue the text of an earlier producer."""
        self.is_resumed = True
        text = self._text_of(found)
        self._pieces = [text]
        self.seq = self._acked_seq = found.seq
        self._acked_units = wire.units(text)

    def _text_of(self, found: interface.Streamed) -> str:
        return self._decrypted(found) if self.is_encrypted else wire.text_of(found)

    def _decrypted(self, found: interface.Streamed) -> str:
        text = ""
        for piece in wire.sealed_pieces(found):
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
        if not isinstance(text, str):
            raise errors.UnencodableData(f"The text of a stream is a str, not {type(text).__name__}.")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise errors.UnencodableData("The text has a lone surrogate, which is no character.") from None
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
                        f"The token number {seq} follows {self.seq}: {self.seq + 1} is missing.", self.seq + 1, seq
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
        return 0 if self._taken is None else wire.units(self._taken.kept)

    def restart(self) -> None:
        with self._lock:
            self._pending, self._pending_units = [], 0
            self._pieces = []
            self._acked_units = 0
            self.seq = 0
            self._replaces = True
            if self._taken is not None:  # the next write drops its text
                self._taken = self._taken._replace(is_dropped=True)

    def end(self, state: State, error: str | None = None) -> None:
        with self._lock:
            if self._ending is None and self.failure is None:
                self._ending = state, error
                self.due_s = time.monotonic()
        flusher().wake(self)

    def end_after(self, error: BaseException | None) -> Future[None] | None:
        """End the stream at the end of its block. None: the stream was cancelled, and the block has raised that."""
        if isinstance(error, errors.StreamCancelled):
            return None
        if error is None:
            self.end(State.DONE)
        elif isinstance(error, Exception):
            self.end(State.FAILED)
        else:  # the task was cancelled, the process is ending
            self.end(State.INTERRUPTED)
        if self.failure is not None:
            self._finish(self.failure)
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
                self._taken = _Taken("".join(self._pending), self.seq, self._acked_units, self._replaces)
                self._pending, self._pending_units = [], 0
            taken = self._taken
            is_last = self._ending is not None and not self._pending and not taken.is_dropped
            changes = bool(taken.text) or taken.replaces or taken.seq != self._acked_seq
            writes = [self._piece(taken)] if changes or not is_last else []
            if self._ending is not None and is_last:
                writes.append(self._end(taken, *self._ending))
            return writes

    def _piece(self, taken: _Taken) -> interface.StreamWrite:
        data = None
        if self.is_encrypted:
            fields = wire.data(self.where.id, taken.seq, taken.at, taken.text, State.OPEN, meta=self.head.meta)
            data = self._sealed(fields)
        write = rules.piece(
            self.where,
            self.head,
            taken.text,
            after=self._acked_seq,
            seq=taken.seq,
            at=taken.at,
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
        """The answer to `take`. Raises EngineError, and the errors of the receipts."""
        for write, receipt in zip(writes, receipts, strict=True):
            if receipt.error is not None:
                raise receipt.error
            if not receipt.done and not _was_done(write, receipt) and not _was_done(writes[-1], receipt):
                self._refused(receipt)
                return
        has_ended = writes[-1].state is not State.OPEN
        with self._lock:
            self._failed_since_s = None
            if self._taken is not None:
                self._acked_seq = self._taken.seq
                if not self._taken.is_dropped:
                    self._pieces.append(self._taken.text)
                    self._acked_units += wire.units(self._taken.text)
                    self._replaces &= not self._taken.replaces
                self._taken = None
            if not has_ended and (self._pending or self._replaces or self._ending is not None):
                now = time.monotonic()
                self.due_s = now if self._ending is not None else max(now, self.written_s + self.window_s)
            if has_ended:
                self.failure = self.failure or errors.StreamClosed(
                    "The stream was ended before this append.", "".join(self._pieces)
                )
        if has_ended:
            flusher().remove(self)
            self._finish(None)

    def _refused(self, receipt: interface.StreamReceipt) -> None:
        """The engine refused a write, because the stream has changed since the last one. Raises EngineError."""
        if receipt.state is None or receipt.state in interface.RESUMABLE:
            # The log was lost, or this process was stopped for longer than its lease: open it with the whole text.
            receipt = self._write(self._opening(after=receipt.seq))
            if receipt.done:
                with self._lock:
                    if self._taken is not None and self._taken.is_dropped:
                        self._taken = None  # it followed a text that the log no longer has
                    self.due_s = time.monotonic()
                return
        if receipt.state is State.OPEN:
            self.fail(
                errors.StreamConflict(
                    f"Another producer appends to the stream {self.where.id}: its newest token is {receipt.seq}, "
                    f"and this producer's is {self._acked_seq}.",
                    self._acked_seq,
                    receipt.seq,
                )
            )
        else:
            taken = self._taken
            is_written = taken is not None and receipt.seq == taken.seq != self._acked_seq
            text = "".join([*self._pieces, taken.kept] if taken is not None and is_written else self._pieces)
            self.fail(_closed(receipt.state or State.CANCELLED, self.where, text))

    def postpone(self, error: Exception) -> None:
        """A write failed: retry it soon if the log is unavailable; otherwise the stream fails."""
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
        self._finish(error)

    def _finish(self, error: errors.FanfareError | None) -> None:
        """Set the result of `_ended`, once: the producer's thread and the flusher may both come here."""
        with self._lock:
            if self._ended.done():
                return
            if error is None:
                self._ended.set_result(None)
            else:
                self._ended.set_exception(error)


def _was_done(write: interface.StreamWrite, receipt: interface.StreamReceipt) -> bool:
    """Whether an earlier try of this write was done, and its answer was lost."""
    return (receipt.state, receipt.seq, receipt.size) == (write.state, write.seq, write.size)


def _closed(state: State, where: interface.StreamName, text: str) -> errors.StreamEnded:
    if state is State.CANCELLED:
        return errors.StreamCancelled(f"The stream {where.id} on {where.channel} was cancelled.", text)
    return errors.StreamClosed(f"The stream {where.id} on {where.channel} is {state.name.lower()}.", text)
