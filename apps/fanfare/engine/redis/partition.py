"""One partition on one worker: its connection, its phase, and the position of its reader.

The state is `Phase`. `join` gives the partition a connection, `resume` reads from the log what was missed, and `gap`
begins a new life where the log cannot repair it. `calls`, `interest` and `catch_up` are parts with states of their own.
"""

from __future__ import annotations

import asyncio
import collections
import enum
import itertools
import logging
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Protocol

from fanfare.engine import errors, interface, moves
from fanfare.engine.redis import address, calls, catch_up, entries, operations, queries, scripts, wire
from fanfare.engine.redis.interest import LISTENER, SUBSCRIBERS, Interest, Routes

logger = logging.getLogger(__name__)

REPAIR_ENTRIES: Final = 1_000  # of the log, in one answer
REMOVED_AT_ONCE: Final = 200  # members and counts: about 3 ms of the server
TRY_AGAIN_S: Final = 0.05  # while a cluster moves the slot


class Owner(Protocol):
    """The members of the worker that a partition uses."""

    address: address.Address
    partitions: int
    node: str
    is_opening: bool
    is_closed: bool
    moved_away: str
    counters: collections.Counter[str]
    routes: Routes[Partition]

    def hand_over(self, batch: Sequence[interface.Entry]) -> None: ...
    def entered(self, partition: Partition, error: errors.EngineError | None) -> None: ...
    def counted(self, group: Sequence[operations.Call], wants: Iterable[operations.Want]) -> None: ...
    def fail(self, partition: Partition, why: str) -> None: ...
    def moved(self, partition: Partition, refusal: errors.EngineError) -> None: ...
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
        self.beats = 0  # of all workers in this generation, as the last beat counted them
        self.sessions = self.sessions_late = 0  # in the store, as the last beat counted them
        self.prefix = address.key_prefix(worker.address.prefix, index, worker.partitions)
        self.keys = (self.prefix + "state", self.prefix + "absent")
        self.wire: wire.Wire | None = None
        self.settling = 0  # callbacks of `when_written` that a gap waits for
        self.consumers = 0
        self.calls = calls.CallQueue(self, worker)
        self.interest = Interest(worker.routes, self, self._subscription_refused)
        self.catch_up = catch_up.CatchUp(self, worker)
        self._worker = worker
        self._is_other_log = False  # than the one that this worker followed before
        self._run = ""
        self._unique = ""
        self._numbers = itertools.count()
        self._scheduled = False
        self._not_before = 0.0  # monotonic: no group is sent before
        self._grown: asyncio.Future[None] | None = None
        self._new = self.prefix + "new"
        self.interest.want(self.prefix + "all", LISTENER, on=True)
        self._live()

    @property
    def is_following(self) -> bool:
        return self.phase is Phase.FOLLOWING

    @property
    def is_settling(self) -> bool:
        return self.phase is Phase.SETTLING

    @property
    def has_entered(self) -> bool:
        """Whether the store knows the present life of this worker."""
        return self.phase in (Phase.FOLLOWING, Phase.SETTLING)

    def fail(self, why: str) -> None:
        self._worker.fail(self, why)

    # -- the connection ------------------------------------------------------------------------------------------------

    def join(self, connection: wire.Wire, run: str) -> None:
        """Follow on this connection to the partition's primary, which has this run id."""
        self.wire, self._run = connection, run
        self._unique = address.random_name(10)
        self.calls.reconnected()
        self.interest.reconnected()
        self.resume()

    def leave_wire(self) -> None:
        self.wire = None
        self.phase = Phase.AWAY

    def call(self, reply: wire.Reply, script: scripts.Script, *arguments: bytes | str | int) -> None:
        if self.wire is None:
            reply(errors.EngineUnavailable("The partition has no connection to Redis"))
            return
        # The name of a generation that begins in this call; it must be unique.
        generation = f"{self._unique}{next(self._numbers):06d}"
        self.wire.call(reply, "EVALSHA", script.sha, 2, *self.keys, self._run, generation, *arguments)

    def schedule(self) -> None:
        """Flush at the end of this turn of the loop."""
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._scheduled_flush)

    def _scheduled_flush(self) -> None:
        self._scheduled = False
        self.guarded(self.flush)

    def flush(self) -> None:
        """Send changed subscriptions, and after them the pending calls."""
        if self.wire is None or not self.has_entered:
            return
        self.interest.write(self.wire)
        if time.monotonic() >= self._not_before:
            self.calls.send()

    def guarded(self, step: Callable[..., None], *arguments: Any) -> None:
        """Run a step for the event loop. After a fault the connection is opened again, and the log repairs the rest."""
        try:
            step(*arguments)
        except Exception:
            logger.exception("Partition %d of the log: a callback failed; the connection is opened again", self.index)
            if self.wire is not None:
                self.wire.abort()

    # -- entering ------------------------------------------------------------------------------------------------------

    def resume(self) -> None:
        """Read the missed entries from the log, then follow."""
        self.phase = Phase.RESUMING
        if self.wire is not None:
            self.interest.write(self.wire)
        self._enter()

    def _enter(self) -> None:
        self.call(
            self._entered_on(self.wire),
            scripts.ENTER,
            self.life,
            scripts.LEASE_S * 1000,
            self.generation,
            self.catch_up.earliest(self.position),
            REPAIR_ENTRIES,
            self._worker.node,
            1 if self._worker.is_opening else 2 if self._is_other_log else 0,
            self.position,
            self.beats,
        )

    def _entered_on(self, connection: wire.Wire | None) -> wire.Reply:
        def entered(reply: Any) -> None:
            if connection is self.wire and self.phase is Phase.RESUMING:
                self._entered(reply)

        return entered

    def _entered(self, reply: Any) -> None:
        if isinstance(reply, Exception):
            if not self.handle(reply):
                refusal = self.moved(reply) or errors.EngineUnavailable(f"Redis refused the worker: {reply}")
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
        self.catch_up.clear()
        self._is_other_log = False
        self.beaten_s = time.monotonic()
        self.phase = Phase.SETTLING if self.settling else Phase.FOLLOWING
        self._worker.entered(self, None)
        self.grow()
        self.flush()

    def _repair(self, found: Sequence[bytes]) -> None:
        """Deliver what was missed, from the entries that the log has."""
        batch = []
        last = entries.sequence(found[-1]) if found else 0
        for entry in self.read(found):
            name = self.name_of(entry)
            is_due = entry.id > self.position or self.catch_up.lacks(name, entry.id)
            if is_due and self._concerns(entry, name):
                batch.append(entry)
        self.catch_up.repaired(last)
        self.position = max(self.position, last)
        self._worker.counters["repaired"] += len(batch)
        self._worker.hand_over(batch)

    def _concerns(self, entry: interface.Entry, name: str) -> bool:
        if entry.kind == interface.Kind.CONTROL or entry.channel == interface.USERS:
            return True
        if entry.kind == interface.Kind.SESSION_TAKEN:
            return entry.channel == f"#worker-{self.life}"
        return name in self.interest

    def read(self, found: Sequence[bytes]) -> list[interface.Entry]:
        read = entries.read_all(found)
        self._worker.counters["entries_unknown"] += len(found) - len(read)
        return read

    def name_of(self, entry: interface.Entry) -> str:
        """The channel of the store on which the entry is published."""
        return f"{self.prefix}@{entry.app}:{entry.channel}"

    # -- messages ------------------------------------------------------------------------------------------------------

    def receive(self, name: str, payload: bytes, batch: list[interface.Entry]) -> None:
        """A message of a channel that is wanted here. Its entries are added to `batch`."""
        if name == self._new:
            self.grow()
            return
        if not self.is_following:
            return
        if not payload[0]:
            generation = payload[1:].decode()
            if generation != self.generation:
                self._worker.hand_over(batch[:])
                batch.clear()
                self.gap("generation_changed")
            return
        if name in self.catch_up:
            return
        for entry in entries.read(payload):
            if entry is None:
                self._worker.counters["entries_unknown"] += 1
            elif entry.id > self.position:
                if entry.id > self.calls.held_top:
                    # Of a later call: the answer comes before it.
                    self._worker.hand_over(batch[:])
                    batch.clear()
                    self.calls.release()
                    if self.phase is not Phase.FOLLOWING:  # a caller may have begun a gap
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

    def subscribe(self, app: str, channel: str, *, on: bool) -> None:
        """For channels with subscribers: delivery begins with the answer to the first of them."""
        self.interest.want(f"{self.prefix}@{app}:{channel}", SUBSCRIBERS, on=on)
        self.schedule()

    def listen(self, app: str, channel: str, *, on: bool) -> None:
        name = f"{self.prefix}@{app}:{channel}"
        is_new = on and name not in self.interest and not self.interest.is_subscribed(name)
        self.interest.want(name, LISTENER, on=on)
        if is_new and self.is_following:
            self.catch_up.begin(name, self.position)
        elif not on:
            self.catch_up.stop(name)
        self.schedule()

    def consume(self, *, on: bool) -> None:
        self.consumers += 1 if on else -1
        self.interest.want(self._new, LISTENER, on=self.consumers > 0)
        self.schedule()

    def _subscription_refused(self, error: Any) -> None:
        if not self.handle(error):
            self.fail(f"Redis refused a subscription: {error}")

    # -- refusals ------------------------------------------------------------------------------------------------------

    def refused(self, error: Exception) -> None:
        """Redis refused a beat."""
        if not self.handle(error) and self.moved(error) is None:
            self.fail(f"Redis refused the heartbeat: {error}")

    def handle(self, error: Exception) -> bool:
        """Whether the request may be repeated, on this server or another one."""
        code = str(error).partition(" ")[0]
        if code == "NOSCRIPT" and self.wire is not None:
            for script in scripts.ALL:
                self.wire.call(lambda _reply: None, "SCRIPT", "LOAD", script.text)
            again = self.resume if self.phase is Phase.RESUMING else self.flush
            asyncio.get_running_loop().call_soon(self.guarded, again)
        elif code in ("TRYAGAIN", "ASK"):
            # The slot moves between two servers, which takes a moment.
            self._not_before = time.monotonic() + TRY_AGAIN_S
            again = self.resume if self.phase is Phase.RESUMING else self.flush
            asyncio.get_running_loop().call_later(TRY_AGAIN_S * 1.1, self._if_connected(again))
        elif code in ("MOVED", "CLUSTERDOWN"):
            self.leave_wire()
            self._worker.relocate()
        elif code in ("READONLY", "LOADING", "MASTERDOWN"):
            self.fail(f"Redis takes no writes: {error}")
            if self.wire is not None:
                self.wire.abort()
        else:
            return False
        return True

    def _if_connected(self, again: Callable[[], None]) -> Callable[[], None]:
        connection = self.wire
        return lambda: self.guarded(again) if connection is not None and connection is self.wire else None

    def moved(self, error: Exception) -> errors.EngineError | None:
        """Why nothing is written while the log is moved to another store, and afterwards. The clients reconnect to
        workers of that store."""
        try:
            queries.moved(error, self._worker.address)
        except errors.EngineError as refusal:
            self._worker.moved(self, refusal)
            if isinstance(refusal, errors.EngineMoved) and self.has_entered:
                asyncio.get_running_loop().call_soon(self.guarded, self._gap_if_entered, moves.MOVED)
            return refusal
        return None

    # -- gaps ----------------------------------------------------------------------------------------------------------

    def gap(self, reason: str) -> None:
        """Entries may have been missed: call the hub, and start again at the newest entry with a new life."""
        self.phase = Phase.RESUMING
        self.generation = ""
        self.beats = 0
        self._is_other_log |= reason == "generation_changed"
        self.catch_up.clear()
        before = self._live()
        self.calls.give_up("The worker starts again", subscribers_only=True)
        self._worker.on_gap(self, reason)
        if self.wire is None:
            self.phase = Phase.AWAY
            return
        self.remove(before)
        self.resume()

    def _gap_if_entered(self, reason: str) -> None:
        if self.has_entered:
            self.gap(reason)

    def delivery_failed(self) -> None:
        if self.is_following:
            self.guarded(self.gap, "delivery_failed")

    def settled(self) -> None:
        """A callback that a gap waited for has run."""
        self.settling -= 1
        if not self.settling and self.is_settling:
            self.phase = Phase.FOLLOWING
            self.schedule()

    # -- lives ---------------------------------------------------------------------------------------------------------

    def _live(self) -> str:
        """Take a new life. Returns the previous one."""
        before, self.life = self.life, secrets.token_hex(8)
        if before:
            self.interest.want(f"{self.prefix}w:{before}", LISTENER, on=False)
        self.interest.want(f"{self.prefix}w:{self.life}", LISTENER, on=True)
        return before

    def remove(self, life: str, *, forced: bool = True, done: Callable[[], None] | None = None) -> None:
        """Remove the members and counts of a worker. `forced`: also if its lease has not expired."""

        def removed(reply: Any) -> None:
            if not isinstance(reply, Exception) and reply[2] > 0 and self.wire is not None:
                self.remove(life, forced=forced, done=done)
                return
            if not forced and not isinstance(reply, Exception) and reply[2] == 0:
                if self.index == 0:  # a worker has a life in each partition, and counts once
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
