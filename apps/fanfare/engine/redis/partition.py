"""One partition on one worker: its pending writes, its subscriptions, and the position of its reader."""

from __future__ import annotations

import asyncio
import collections
import enum
import functools
import itertools
import logging
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Protocol

from fanfare.engine import errors, interface
from fanfare.engine.redis import address, entries, operations, queries, scripts, wire

logger = logging.getLogger(__name__)

GROUP_OPERATIONS: Final = 500
GROUP_BYTES: Final = 1_048_576
GROUP_HISTORIES: Final = 32  # and streams of a channel: each answers up to 256 KB
MOST_PENDING: Final = 20_000  # calls of one partition; beyond it the engine refuses at once
MOST_PENDING_BYTES: Final = 32 * 1_048_576
MOST_ENTRIES: Final = 2**63
REPAIR_ENTRIES: Final = 1_000  # of the log, in one answer
LISTEN_ENTRIES: Final = 5_000
REMOVED_AT_ONCE: Final = 200  # members and counts: about 3 ms of the server
CATCH_UP_S: Final = 0.25
TRY_AGAIN_S: Final = 0.05  # while a cluster moves the slot

_INTEREST: Final = 1
_LISTENING: Final = 2


class Owner(Protocol):
    """The methods of the worker that a partition calls."""

    address: address.Address
    partitions: int
    node: str
    is_opening: bool
    is_closed: bool
    counters: collections.Counter[str]
    routes: dict[bytes, tuple[Partition, str]]

    def hand_over(self, batch: Sequence[interface.Entry]) -> None: ...
    def entered(self, partition: Partition, error: errors.EngineError | None) -> None: ...
    def counted(self, group: Sequence[operations.Call], wants: Iterable[operations.Want]) -> None: ...
    def fail(self, partition: Partition, why: str) -> None: ...
    def on_gap(self, partition: Partition, reason: str) -> None: ...
    def relocate(self) -> None: ...


class Phase(enum.Enum):
    AWAY = "away"  # without a connection
    RESUMING = "resuming"  # messages are ignored: the log repairs what is missing, up to an answer that reaches the top
    SETTLING = "settling"  # after a gap: writes run, nothing is delivered and no subscriber is answered
    FOLLOWING = "following"


class Partition:
    """`position`: every entry up to it was delivered, or concerns no subscription of this worker.

    `life`: the id under which this worker's members and counts are in the store. After a gap it is a new one.
    """

    def __init__(self, worker: Owner, index: int) -> None:
        self.index = index
        self.phase = Phase.AWAY
        self.life = ""
        self.generation = ""
        self.position = 0
        self.beaten_s = float("-inf")  # monotonic: the time of the last beat with an answer
        self.sessions = self.sessions_late = 0  # in the store, as the last beat counted them
        self.is_full = False  # the store's memory
        self._is_other_log = False  # than the one that this worker followed before
        self.prefix = address.key_prefix(worker.address.prefix, index, worker.partitions)
        self.keys = (self.prefix + "state", self.prefix + "absent")
        self.wire: wire.Wire | None = None
        self.settling = 0  # callbacks of `when_written` that a gap waits for
        self.consumers = 0
        self._run = ""
        self._unique = ""
        self._calls = itertools.count()
        self._worker = worker
        self._pending: collections.deque[operations.Call] = collections.deque()
        self._pending_bytes = 0
        self._in_flight: list[operations.Call] | None = None
        self._held: Callable[[], None] | None = None  # the answer to it, see `_hold`
        self._held_top = 0  # its newest entry
        self._scheduled = False
        self._not_before = 0.0  # monotonic
        self._wanted: dict[str, int] = {}  # channels of the store: why
        self._subscribed: set[str] = set()
        self._changed: set[str] = set()
        self._catching: dict[str, int] = {}  # listened to, and not read yet since this sequence
        self._grown: asyncio.Future[None] | None = None
        self._all = self.prefix + "all"
        self._new = self.prefix + "new"
        self._want(self._all, _LISTENING, on=True)
        self._live()

    # -- the connection ------------------------------------------------------------------------------------------------

    def join(self, connection: wire.Wire, run: str) -> None:
        """Follow on this connection to the partition's primary, which has this run id."""
        self.wire, self._run = connection, run
        if self._in_flight is not None:  # a fault has kept it from being sent or answered
            settle(self._in_flight, errors.EngineUnavailable("The connection to Redis was lost before it answered"))
            self._in_flight = self._held = None
        self._unique = address.random_name(10)
        self._subscribed.clear()
        self._changed = set(self._wanted)
        self.resume()

    def leave_wire(self) -> None:
        self.wire = None
        self.phase = Phase.AWAY

    def resume(self) -> None:
        """Read the missed entries from the log, then follow."""
        self.phase = Phase.RESUMING
        self._write_interest()
        self._enter()

    def call(self, reply: wire.Reply, script: scripts.Script, *arguments: bytes | str | int) -> None:
        if self.wire is None:
            reply(errors.EngineUnavailable("The partition has no connection to Redis"))
            return
        # The name of a generation that begins in this call; it must be unique.
        generation = f"{self._unique}{next(self._calls):06d}"
        self.wire.call(reply, "EVALSHA", script.sha, 2, *self.keys, self._run, generation, *arguments)

    def _enter(self) -> None:
        since = min([self.position, *self._catching.values()])
        self.call(
            self._entered_on(self.wire),
            scripts.ENTER,
            self.life,
            scripts.LEASE_S * 1000,
            self.generation,
            since,
            REPAIR_ENTRIES,
            self._worker.node,
            1 if self._worker.is_opening else 2 if self._is_other_log else 0,
            self.position,
        )

    def _entered_on(self, connection: wire.Wire | None) -> wire.Reply:
        def entered(reply: Any) -> None:
            if connection is self.wire and self.phase is Phase.RESUMING:
                self._entered(reply)

        return entered

    def _entered(self, reply: Any) -> None:
        if isinstance(reply, Exception):
            if not self._handle(reply):
                refusal = self._moved(reply) or errors.EngineUnavailable(f"Redis refused the worker: {reply}")
                self._worker.entered(self, refusal)
            return
        generation, top, reason, found = reply
        if reason:
            self.gap(reason.decode())
            return
        is_new = not self.generation
        self.generation = generation.decode()
        if is_new:
            self.position = top
        else:
            self._repair(found)
            if len(found) == REPAIR_ENTRIES:
                self._enter()
                return
            self.position = max(self.position, top)
        self._catching.clear()
        self._is_other_log = False
        self.beaten_s = time.monotonic()
        self.phase = Phase.SETTLING if self.settling else Phase.FOLLOWING
        self._worker.entered(self, None)
        self.grow()
        self.flush()

    def _repair(self, found: Sequence[bytes]) -> None:
        batch = []
        last = entries.sequence(found[-1]) if found else 0
        for entry in self._read(found):
            name = self._name(entry)
            is_due = entry.id > self.position or self._catching.get(name, entry.id) < entry.id
            if is_due and self._concerns(entry, name):
                batch.append(entry)
        self._catching = {name: max(since, last) for name, since in self._catching.items()}
        self.position = max(self.position, last)
        self._worker.counters["repaired"] += len(batch)
        self._worker.hand_over(batch)

    def _concerns(self, entry: interface.Entry, name: str) -> bool:
        if entry.kind == interface.Kind.CONTROL or entry.channel == interface.USERS:
            return True
        if entry.kind == interface.Kind.SESSION_TAKEN:
            return entry.channel == f"#worker-{self.life}"
        return name in self._wanted

    def _read(self, found: Sequence[bytes]) -> list[interface.Entry]:
        read = entries.read_all(found)
        self._worker.counters["entries_unknown"] += len(found) - len(read)
        return read

    def _name(self, entry: interface.Entry) -> str:
        return f"{self.prefix}@{entry.app}:{entry.channel}"

    # -- messages ------------------------------------------------------------------------------------------------------

    def receive(self, name: str, payload: bytes, batch: list[interface.Entry]) -> None:
        """A message of a channel that is wanted here."""
        if name == self._new:
            self.grow()
            return
        if self.phase is not Phase.FOLLOWING:
            return
        if not payload[0]:
            generation = payload[1:].decode()
            if generation != self.generation:
                self._worker.hand_over(batch[:])
                batch.clear()
                self.gap("generation_changed")
            return
        if name in self._catching:
            return
        for entry in entries.read(payload):
            if entry is None:
                self._worker.counters["entries_unknown"] += 1
            elif entry.id > self.position:
                if self._held is not None and entry.id > self._held_top:
                    # Of a later call: the answer comes before it.
                    self._worker.hand_over(batch[:])
                    batch.clear()
                    if not self._release(None):
                        return
                self.position = entry.id
                batch.append(entry)

    def grow(self) -> None:
        if self._grown is not None and not self._grown.done():
            self._grown.set_result(None)

    def grown(self) -> asyncio.Future[None]:
        """Done when consumers may find something new."""
        if self._grown is None or self._grown.done():
            self._grown = asyncio.get_running_loop().create_future()
        return self._grown

    # -- interest ------------------------------------------------------------------------------------------------------

    def interest(self, app: str, channel: str, *, on: bool) -> None:
        """For channels with subscribers: delivery begins with the answer to the first of them."""
        self._want(f"{self.prefix}@{app}:{channel}", _INTEREST, on=on)
        self._schedule()

    def listen(self, app: str, channel: str, *, on: bool) -> None:
        name = f"{self.prefix}@{app}:{channel}"
        is_new = on and name not in self._wanted and name not in self._subscribed
        self._want(name, _LISTENING, on=on)
        if is_new and self.phase is Phase.FOLLOWING:
            # The server may serve another process' append before it reads the SSUBSCRIBE: the log has it.
            self._catching[name] = self.position
            self._catch_up(name)
        elif not on:
            self._catching.pop(name, None)
        self._schedule()

    def _catch_up(self, name: str) -> None:
        want = ("l", self._catching[name], LISTEN_ENTRIES)

        def settled(answer: operations.Answer | None, error: errors.EngineError | None) -> None:
            since = self._catching.get(name)
            if since is None or self.phase is not Phase.FOLLOWING:
                return  # repaired when the partition resumes
            if answer is None:
                self._catch_up_later(name)
                return
            found = answer.found[want]
            read = self._read(found)
            self._worker.hand_over([entry for entry in read if entry.id > since and self._name(entry) == name])
            if len(found) == LISTEN_ENTRIES:
                self._catching[name] = entries.sequence(found[-1])
                self._catch_up(name)
            else:
                del self._catching[name]

        try:
            self.submit(operations.Call((), settled, wants=(want,)), urgent=True)
        except errors.EngineError:
            self._catch_up_later(name)

    def _catch_up_later(self, name: str) -> None:
        """Until it has caught up, messages of the channel are ignored: the log has them."""
        self._worker.counters["listens_late"] += 1
        if not self._worker.is_closed:
            asyncio.get_running_loop().call_later(CATCH_UP_S, self._catch_up_again, name)

    def _catch_up_again(self, name: str) -> None:
        if name in self._catching:
            self._guarded(self._catch_up, name)

    def consume(self, *, on: bool) -> None:
        self.consumers += 1 if on else -1
        self._want(self._new, _LISTENING, on=self.consumers > 0)
        self._schedule()

    def _want(self, name: str, why: int, *, on: bool) -> None:
        before = self._wanted.get(name, 0)
        after = before | why if on else before & ~why
        if after:
            self._wanted[name] = after
            self._worker.routes[name.encode()] = (self, name)
        elif before:
            del self._wanted[name]
            del self._worker.routes[name.encode()]
        if bool(before) is not bool(after):
            self._changed.add(name)

    def _write_interest(self) -> None:
        if not self._changed or self.wire is None:
            return
        changed, self._changed = self._changed, set()
        came = [name for name in changed if name in self._wanted and name not in self._subscribed]
        went = [name for name in changed if name not in self._wanted and name in self._subscribed]
        if came:
            self.wire.subscribe(came, self._subscription_refused)
            self._subscribed.update(came)
        if went:
            self.wire.subscribe(went, self._subscription_refused, on=False)
            self._subscribed.difference_update(went)

    def _subscription_refused(self, error: Any) -> None:
        if not self._handle(error):
            self._worker.fail(self, f"Redis refused a subscription: {error}")

    # -- calls ---------------------------------------------------------------------------------------------------------

    @property
    def is_busy(self) -> bool:
        """Whether a call has no answer yet."""
        return bool(self._pending) or self._in_flight is not None

    def submit(self, call: operations.Call, *, urgent: bool = False) -> None:
        """Raises EngineUnavailable if too many calls are pending."""
        if self._worker.is_closed:
            raise errors.EngineUnavailable("The engine is closed")
        if len(self._pending) >= MOST_PENDING or self._pending_bytes + call.size > MOST_PENDING_BYTES:
            raise errors.EngineUnavailable(f"{len(self._pending)} writes of this partition wait for Redis already")
        self._pending_bytes += call.size
        (self._pending.appendleft if urgent else self._pending.append)(call)
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._scheduled_flush)

    def _scheduled_flush(self) -> None:
        self._scheduled = False
        self._guarded(self.flush)

    def _guarded(self, step: Callable[..., None], *arguments: Any) -> None:
        """Run a step for the event loop. After a fault the connection begins again, and the log repairs the rest."""
        try:
            step(*arguments)
        except Exception:
            logger.exception("Partition %d of the log: a callback failed; the connection is opened again", self.index)
            if self.wire is not None:
                self.wire.abort()

    def flush(self) -> None:
        """Send the pending calls as one group, unless a group has no answer yet."""
        if self.wire is None or self.phase not in (Phase.FOLLOWING, Phase.SETTLING):
            return
        self._write_interest()
        if self._in_flight is not None or not self._pending or time.monotonic() < self._not_before:
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
        self.call(lambda reply: self._hold(group, list(wants), reply), script, self.life, packed, packed_wants)
        if self.wire is not None:
            self.wire.call(self._release, "PING")

    def _refuse_unpackable(self, group: list[operations.Call]) -> None:
        """A call that is no msgpack, such as text that is not Unicode, must not fail its neighbours."""
        good: list[operations.Call] = []
        for call in group:
            try:
                entries.pack([*call.operations, *call.wants])
            except (TypeError, ValueError, OverflowError) as error:
                logger.error("An operation cannot be written to Redis: %s", error)  # noqa: TRY400
                settle_one(call, None, errors.EngineUnavailable(f"It cannot be written to Redis: {error}"))
            else:
                good.append(call)
        self._put_back(good)
        self._schedule()

    def _hold(self, group: list[operations.Call], wants: list[operations.Want], reply: Any) -> None:
        """Keep an answer until its own messages are here: up to the PING behind the call, or to a later entry.

        Redis 7.0 sends the messages of a script to its caller before the reply; Redis 7.2 and Valkey after it.
        """
        self._held = functools.partial(self._answered, group, wants, reply)
        self._held_top = reply[1] if isinstance(reply, list) else MOST_ENTRIES

    def _release(self, _pong: Any) -> bool:
        """Whether the partition is followed afterwards."""
        held, self._held = self._held, None
        if held is not None:
            held()
        return self.phase is Phase.FOLLOWING

    def _take(self) -> list[operations.Call]:
        """The next calls. After a gap none with a subscriber, and with full memory those that free some alone."""
        group: list[operations.Call] = []
        kept: collections.deque[operations.Call] = collections.deque()
        histories: set[operations.Want] = set()
        count = size = 0
        while self._pending:
            call = self._pending[0]
            several = len(call.operations)
            if group and (count + several > GROUP_OPERATIONS or size + call.size > GROUP_BYTES):
                break
            if len(histories) >= GROUP_HISTORIES or (self.is_full and group and call.frees is not group[0].frees):
                break
            self._pending.popleft()
            if self.phase is Phase.SETTLING and call.wants:
                kept.append(call)
                continue
            self._pending_bytes -= call.size
            group.append(call)
            count += several
            size += call.size
            histories.update(want for want in call.wants if want[0] in ("h", "t"))
        self._pending.extendleft(reversed(kept))
        return group

    def _answered(self, group: list[operations.Call], wants: list[operations.Want], reply: Any) -> None:
        self._in_flight = None
        if isinstance(reply, errors.EngineError):
            settle(group, reply)
            return
        if isinstance(reply, Exception):
            self._refused(group, reply)
            return
        self.is_full = False
        generation, top, results, values = reply
        answer_generation = generation.decode()
        is_changed = answer_generation != self.generation
        if not is_changed:
            self.position = max(self.position, top)
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
        if is_changed and self.phase in (Phase.FOLLOWING, Phase.SETTLING):
            self.gap("generation_changed")
        self.flush()

    def _refused(self, group: list[operations.Call], error: Exception) -> None:
        """Redis refused the whole group."""
        text = str(error)
        if text.startswith("OOM"):
            self.is_full = True
            failure = errors.EngineUnavailable("Redis has no memory left (maxmemory): nothing was written")
            self._worker.fail(self, str(failure))
            self._put_back([call for call in group if call.frees])
            settle([call for call in group if not call.frees], failure)
            self._schedule()
        elif self._handle(error):
            self._put_back(group)
        elif (refusal := self._moved(error)) is not None:
            settle(group, refusal)
            self._schedule()
        else:
            self._worker.fail(self, f"Redis refused a write: {text}")
            settle(group, errors.EngineUnavailable(f"Redis refused it: {text}"))
            self._schedule()

    def refused(self, error: Exception) -> None:
        """Redis refused a beat."""
        if not self._handle(error) and self._moved(error) is None:
            self._worker.fail(self, f"Redis refused the heartbeat: {error}")

    def _moved(self, error: Exception) -> errors.EngineError | None:
        """Why nothing is written while the log is moved to another store, and afterwards; the sockets return to workers
        of that one."""
        try:
            queries.moved(error, self._worker.address)
        except errors.EngineError as refusal:
            self._worker.fail(self, str(refusal))
            if isinstance(refusal, errors.EngineMoved) and self.phase in (Phase.FOLLOWING, Phase.SETTLING):
                asyncio.get_running_loop().call_soon(self._guarded, self._gap_if_followed, "moved")
            return refusal
        return None

    def _gap_if_followed(self, reason: str) -> None:
        if self.phase in (Phase.FOLLOWING, Phase.SETTLING):
            self.gap(reason)

    def _put_back(self, group: list[operations.Call]) -> None:
        group = [call for call in group if not call.is_settled]
        self._pending.extendleft(reversed(group))
        self._pending_bytes += sum(call.size for call in group)

    def _handle(self, error: Exception) -> bool:
        """Whether the request may be repeated, on this server or another one."""
        code = str(error).partition(" ")[0]
        if code == "NOSCRIPT" and self.wire is not None:
            for script in scripts.ALL:
                self.wire.call(lambda _reply: None, "SCRIPT", "LOAD", script.text)
            again = self.resume if self.phase is Phase.RESUMING else self.flush
            asyncio.get_running_loop().call_soon(self._guarded, again)
        elif code in ("TRYAGAIN", "ASK"):
            # The slot moves between two servers, which takes a moment.
            self._not_before = time.monotonic() + TRY_AGAIN_S
            again = self.resume if self.phase is Phase.RESUMING else self.flush
            asyncio.get_running_loop().call_later(TRY_AGAIN_S * 1.1, self._if_connected(again))
        elif code in ("MOVED", "CLUSTERDOWN"):
            self.leave_wire()
            self._worker.relocate()
        elif code in ("READONLY", "LOADING", "MASTERDOWN"):
            self._worker.fail(self, f"Redis takes no writes: {error}")
            if self.wire is not None:
                self.wire.abort()
        else:
            return False
        return True

    def _if_connected(self, again: Callable[[], None]) -> Callable[[], None]:
        connection = self.wire
        return lambda: self._guarded(again) if connection is not None and connection is self.wire else None

    def expire(self, before: float) -> int:
        """Refuse the calls that are older than this monotonic time. Returns their number. Redis may still do a
        call that was sent."""
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

    # -- gaps ----------------------------------------------------------------------------------------------------------

    def gap(self, reason: str) -> None:
        """Entries may have been missed: call the hub, and start again at the newest entry with a new life."""
        self.phase = Phase.RESUMING
        self.generation = ""
        self._is_other_log |= reason == "generation_changed"
        self._catching.clear()
        before = self._live()
        self.give_up("The worker starts again", subscribers_only=True)
        self._worker.on_gap(self, reason)
        if self.wire is None:
            self.phase = Phase.AWAY
            return
        self.remove(before)
        self.resume()

    def delivery_failed(self) -> None:
        if self.phase is Phase.FOLLOWING:
            self._guarded(self.gap, "delivery_failed")

    def settled(self) -> None:
        """A callback that a gap waited for has run."""
        self.settling -= 1
        if not self.settling and self.phase is Phase.SETTLING:
            self.phase = Phase.FOLLOWING
            self._schedule()

    def _live(self) -> str:
        """Take a new life. Returns the previous one."""
        before, self.life = self.life, secrets.token_hex(8)
        if before:
            self._want(f"{self.prefix}w:{before}", _LISTENING, on=False)
        self._want(f"{self.prefix}w:{self.life}", _LISTENING, on=True)
        return before

    def remove(self, life: str, *, forced: bool = True, done: Callable[[], None] | None = None) -> None:
        """Remove the members and counts of a worker. `forced`: also if its lease has not expired."""

        def removed(reply: Any) -> None:
            if not isinstance(reply, Exception) and reply[2] > 0 and self.wire is not None:
                self.remove(life, forced=forced, done=done)
                return
            if not forced and not isinstance(reply, Exception) and reply[2] == 0:
                self._worker.counters["reaped"] += 1
                logger.warning(
                    "Worker %s is dead: its members and counts in partition %d were removed", life, self.index
                )
            if done is not None:
                done()

        if self.wire is None:
            if done is not None:
                done()
            return
        self.call(removed, scripts.REMOVE, life, int(forced), REMOVED_AT_ONCE)


def settle(calls: Sequence[operations.Call] | collections.deque[operations.Call], error: errors.EngineError) -> None:
    for call in calls:
        settle_one(call, None, error)


def settle_one(call: operations.Call, answer: operations.Answer | None, error: errors.EngineError | None) -> None:
    if call.is_settled:
        return
    call.is_settled = True
    try:
        call.settled(answer, error)
    except Exception:
        # An exception of one caller must not leave the others without an answer.
        logger.exception("The answer to %s could not be handled", [operation[0] for operation in call.operations])
