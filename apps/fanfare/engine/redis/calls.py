"""The calls of a worker to one partition. Those that wait together are sent as one group, which is one run of a script.

A group is sent when the group before it has its answer, so under load groups grow and the cost of each call falls.
"""

from __future__ import annotations

import asyncio
import collections
import functools
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Protocol

from fanfare.engine import errors
from fanfare.engine.redis import entries, operations, scripts
from fanfare.engine.redis.operations import Call, settle, settle_one
from fanfare.engine.redis.wire import Reply, Wire

logger = logging.getLogger(__name__)

GROUP_OPERATIONS: Final = 500
GROUP_BYTES: Final = 1_048_576
GROUP_HISTORIES: Final = 32  # and streams of a channel: each answers up to 256 KB
MOST_PENDING: Final = 20_000  # calls of one partition; beyond it the engine refuses at once
MOST_PENDING_BYTES: Final = 32 * 1_048_576
NO_SEQUENCE: Final = 2**63  # larger than that of every entry


class Worker(Protocol):
    is_closed: bool
    moved_away: str

    def counted(self, group: Sequence[Call], wants: Iterable[operations.Want]) -> None: ...


class Owner(Protocol):
    """The members of the partition that its calls use."""

    wire: Wire | None
    life: str
    generation: str
    position: int

    @property
    def has_entered(self) -> bool: ...
    @property
    def is_settling(self) -> bool: ...
    def schedule(self) -> None: ...
    def flush(self) -> None: ...
    def call(self, reply: Reply, script: scripts.Script, *arguments: bytes | str | int) -> None: ...
    def handle(self, error: Exception) -> bool: ...
    def moved(self, error: Exception) -> errors.EngineError | None: ...
    def fail(self, why: str) -> None: ...
    def gap(self, reason: str) -> None: ...


class CallQueue:
    """`is_full`: the memory of the server. Then a group has only calls that free some, or one call that tests it.

    `held_top`: the newest entry of an answer that is held (see `_hold`), or NO_SEQUENCE.
    """

    def __init__(self, partition: Owner, worker: Worker) -> None:
        self.is_full = False
        self.held_top = NO_SEQUENCE
        self._partition = partition
        self._worker = worker
        self._pending: collections.deque[Call] = collections.deque()
        self._pending_bytes = 0
        self._in_flight: list[Call] | None = None
        self._held: Callable[[], None] | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a call has no answer yet."""
        return bool(self._pending) or self._in_flight is not None

    def submit(self, call: Call, *, urgent: bool = False) -> None:
        """Refuses the call at once, through its callback, if the queue is full or closed."""
        refusal: errors.EngineError | None = None
        if self._worker.is_closed:
            refusal = errors.EngineUnavailable("The engine is closed")
        elif self._worker.moved_away:
            refusal = errors.EngineMoved(self._worker.moved_away)
        elif len(self._pending) >= MOST_PENDING or self._pending_bytes + call.size > MOST_PENDING_BYTES:
            refusal = errors.EngineUnavailable(f"{len(self._pending)} writes of this partition wait for Redis already")
        if refusal is not None:
            settle_one(call, None, refusal)
            return
        self._pending_bytes += call.size
        (self._pending.appendleft if urgent else self._pending.append)(call)
        self._partition.schedule()

    async def ask(
        self, operation: operations.Operation | None = None, want: operations.Want | None = None
    ) -> operations.Answer:
        """One operation or want, and its answer. Raises EngineUnavailable."""
        done: asyncio.Future[operations.Answer] = asyncio.get_running_loop().create_future()

        def settled(answer: operations.Answer | None, error: errors.EngineError | None) -> None:
            if done.done():
                return
            if answer is None:
                done.set_exception(error or errors.EngineUnavailable("Redis did not answer"))
            else:
                done.set_result(answer)

        self.submit(Call([operation] if operation else [], settled, wants=[want] if want else ()))
        answer = await done
        for result in answer.results:
            operations.check(result)
        return answer

    # -- sending -------------------------------------------------------------------------------------------------------

    def send(self) -> None:
        """Send the pending calls as one group, unless a group has no answer yet."""
        if self._in_flight is not None or not self._pending:
            return
        group = self._take()
        if not group:
            return
        wants = dict.fromkeys(want for call in group for want in call.wants)
        script = scripts.APPLY
        if self.is_full and group[0].frees:
            script = scripts.FREE
        elif all(operation[0] in ("a", "b") for call in group for operation in call.operations) and not wants:
            script = scripts.PUBLISH
        try:
            packed = entries.pack([operation for call in group for operation in call.operations])
            packed_wants = entries.pack(list(wants))
        except (TypeError, ValueError, OverflowError):
            self._refuse_unpackable(group)
            return
        self._worker.counted(group, wants)
        self._in_flight = group
        answered = functools.partial(self._hold, group, list(wants))
        self._partition.call(answered, script, self._partition.life, packed, packed_wants)
        if self._partition.wire is not None:
            self._partition.wire.call(self._pong, "PING")

    def _take(self) -> list[Call]:
        """The next calls. After a gap none with a subscriber, and with full memory those that free some alone."""
        group: list[Call] = []
        kept: collections.deque[Call] = collections.deque()
        joins: set[operations.Operation] = set()  # of kept calls: the leaves of their sockets are kept too
        histories: set[operations.Want] = set()
        count = size = 0
        is_settling = self._partition.is_settling
        while self._pending:
            call = self._pending[0]
            several = len(call.operations)
            if group and (count + several > GROUP_OPERATIONS or size + call.size > GROUP_BYTES):
                break
            if len(histories) >= GROUP_HISTORIES or (self.is_full and group and call.frees is not group[0].frees):
                break
            self._pending.popleft()
            if is_settling and (call.wants or operations.sockets(call, "l") & joins):
                kept.append(call)
                joins |= operations.sockets(call, "j")
                continue
            self._pending_bytes -= call.size
            group.append(call)
            count += several
            size += call.size
            histories.update(want for want in call.wants if want[0] in ("h", "t"))
        self._pending.extendleft(reversed(kept))
        return group

    def _refuse_unpackable(self, group: list[Call]) -> None:
        """A call that is no msgpack, such as text that is not Unicode, must not fail its neighbours."""
        good: list[Call] = []
        for call in group:
            try:
                entries.pack([*call.operations, *call.wants])
            except (TypeError, ValueError, OverflowError) as error:
                logger.error("An operation cannot be written to Redis: %s", error)  # noqa: TRY400
                settle_one(call, None, errors.EngineUnavailable(f"It cannot be written to Redis: {error}"))
            else:
                good.append(call)
        self._put_back(good)
        self._partition.schedule()

    def _put_back(self, group: list[Call]) -> None:
        group = [call for call in group if not call.is_settled]
        self._pending.extendleft(reversed(group))
        self._pending_bytes += sum(call.size for call in group)

    # -- answers -------------------------------------------------------------------------------------------------------

    def _hold(self, group: list[Call], wants: list[operations.Want], reply: Any) -> None:
        """Keep an answer until its own messages are here: up to the PING behind the call, or to a later entry.

        Redis 7.0 sends the messages of a script to its caller before the reply; Redis 7.2 and Valkey after it.
        """
        self._held = functools.partial(self._answered, group, wants, reply)
        self.held_top = reply[1] if isinstance(reply, list) else NO_SEQUENCE

    def _pong(self, _reply: Any) -> None:
        self.release()

    def release(self) -> None:
        """Handle the answer that is held."""
        held, self._held = self._held, None
        self.held_top = NO_SEQUENCE
        if held is not None:
            held()

    def _answered(self, group: list[Call], wants: list[operations.Want], reply: Any) -> None:
        self._in_flight = None
        if isinstance(reply, errors.EngineError):
            settle(group, reply)
            return
        if isinstance(reply, Exception):
            self._refused(group, reply)
            return
        self.is_full = False
        partition = self._partition
        generation, top, results, values = reply
        answer_generation = generation.decode()
        is_changed = answer_generation != partition.generation
        if not is_changed:
            partition.position = max(partition.position, top)
        found = dict(zip(wants, values, strict=True))
        start = 0
        late = errors.EngineUnavailable("The worker starts again")
        for call in group:
            end = start + len(call.operations)
            if is_changed and call.wants:
                settle_one(call, None, late)
            else:
                settle_one(call, operations.Answer(answer_generation, top, results[start:end], found), None)
            start = end
        if is_changed and partition.has_entered:
            partition.gap("generation_changed")
        partition.flush()

    def _refused(self, group: list[Call], error: Exception) -> None:
        """Redis refused the whole group."""
        text = str(error)
        partition = self._partition
        if text.startswith("OOM"):
            self.is_full = True
            failure = errors.EngineUnavailable("Redis has no memory left (maxmemory): nothing was written")
            partition.fail(str(failure))
            self._put_back([call for call in group if call.frees])
            settle([call for call in group if not call.frees], failure)
            partition.schedule()
        elif partition.handle(error):
            self._put_back(group)
        elif (refusal := partition.moved(error)) is not None:
            settle(group, refusal)
            partition.schedule()
        else:
            partition.fail(f"Redis refused a write: {text}")
            settle(group, errors.EngineUnavailable(f"Redis refused it: {text}"))
            partition.schedule()

    # -- calls without an answer ---------------------------------------------------------------------------------------

    def reconnected(self) -> None:
        """Refuse a group that a fault of the connection before kept from being sent or answered."""
        if self._in_flight is not None:
            settle(self._in_flight, errors.EngineUnavailable("The connection to Redis was lost before it answered"))
            self._in_flight = self._held = None
            self.held_top = NO_SEQUENCE

    def expire(self, before: float) -> int:
        """Refuse the calls that are older than this monotonic time, and return their number. Redis may still run a call
        that was sent."""
        unanswered = [call for call in self._in_flight or () if call.born < before and not call.is_settled]
        settle(unanswered, errors.EngineUnavailable("Redis has not answered in time: it may have been written"))
        late = [call for call in self._pending if call.born < before]
        if late:
            self._pending = collections.deque(call for call in self._pending if call.born >= before)
            self._pending_bytes = sum(call.size for call in self._pending)
            settle(late, errors.EngineUnavailable("Timed out waiting for Redis: nothing was written"))
        return len(late) + len(unanswered)

    def give_up(self, why: str, *, subscribers_only: bool = False) -> None:
        """Refuse the pending calls."""
        waiting, self._pending = self._pending, collections.deque()
        if subscribers_only:
            self._pending.extend(call for call in waiting if not call.wants)
            waiting = collections.deque(call for call in waiting if call.wants)
        self._pending_bytes = sum(call.size for call in self._pending)
        settle(waiting, errors.EngineUnavailable(why))
