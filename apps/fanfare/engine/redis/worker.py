"""A worker on Redis: its partitions, its heartbeat, and what it writes again to a store that has lost it.

Each kind of call has a module: `appends`, `subscriptions`, `counts`, `sessions` and `leases`. All of them submit to the
queue of a partition (`calls`), and `topology` connects the partitions to their servers.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import hiredis

from fanfare.engine import errors, interface, moves
from fanfare.engine.redis import (
    appends,
    counts,
    leases,
    link,
    operations,
    scripts,
    sessions,
    subscriptions,
)
from fanfare.engine.redis.interest import Routes
from fanfare.engine.redis.partition import Partition, Phase
from fanfare.engine.redis.queries import Store
from fanfare.engine.redis.topology import Topology
from fanfare.runtime.supervisor import Supervisor

logger = logging.getLogger(__name__)

BEAT_S: Final = 1.0
TICK_S: Final = 0.25
GOODBYE_S: Final = 5.0
OPEN_S: Final = 10.0


class Worker:
    """Made and used on one event loop; `open` to `close` is one life of the process, with a life in each partition."""

    def __init__(
        self,
        store: Store,
        deliver: interface.Deliver,
        on_gap: interface.OnGap,
        *,
        log_seconds: float,
        append_timeout: float,
    ) -> None:
        self.id = secrets.token_hex(4)
        self.address = store.address
        self.partitions = store.partitions
        self.node = f"{socket.gethostname()}:{os.getpid()}"
        self.loop = asyncio.get_running_loop()
        self.counters: collections.Counter[str] = collections.Counter()
        self.routes: Routes[Partition] = {}  # channels of the store that are wanted here
        self.memory = (0, 0)  # used, at most (0: no bound)
        self.workers = 0
        self.is_opening = True
        self.is_closed = False
        self.moved_away = ""  # why every call is refused: the log is in another store
        self._is_closing = False
        self.beat_arguments = (
            scripts.LEASE_S * 1000,
            int(log_seconds * 1000),
            max(1, interface.LATE_SESSIONS // self.partitions),
        )
        self.all = [Partition(self, index) for index in range(self.partitions)]
        self.appends = appends.Appends(self.of)
        self.subscribers = counts.SubscriberCounts(self.all, self.of, self.counters)
        self.subscriptions = subscriptions.Subscriptions(self.of, self.subscribers, self.counters)
        self.sessions = sessions.Sessions(self.of, self.counters)
        self.leases = leases.Leases(self.all)
        self._store = store
        self._append_timeout = append_timeout
        self._deliver = deliver
        self._on_gap = on_gap
        self._thread = threading.get_ident()
        self._supervisor = Supervisor(logger, count=lambda name: self.counters.update([name]), prefix="tasks")
        self.topology = Topology(self, self._supervisor)
        self._failures: dict[int, str] = {}  # by partition, until it works again
        self._entered: asyncio.Future[None] | None = None
        self._in_gap: Partition | None = None
        self._unreported: dict[Partition, str] = {}  # gaps that the hub has not handled yet: why
        self._reaping: set[tuple[int, str]] = set()

    def of(self, app: str, channel: str) -> Partition:
        return self.all[self._store.partition(app, channel)]

    # -- life ----------------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Raises EngineMisconfigured, EngineUnavailable."""
        self._entered = self.loop.create_future()
        try:
            async with asyncio.timeout(OPEN_S):
                await self.topology.find()
                for each in list(self.topology.links.values()):
                    await each.connect()
                    each.failure = None
                await self._entered
        except (OSError, hiredis.ReplyError) as error:
            # A wrong password or a missing right is permanent, so no reconnect follows.
            kind = errors.EngineMisconfigured if isinstance(error, hiredis.ReplyError) else errors.EngineUnavailable
            raise kind(link.explain(error)) from error
        self.is_opening = False
        self.topology.follow()
        self._supervisor.run("The heartbeat", self._tick)

    def relocate(self) -> None:
        self.topology.relocate()

    async def close(self) -> None:
        self._is_closing = True
        self.subscribers.stop()
        self.leases.stop()
        for partition in self.all:
            partition.calls.give_up("The engine is closed", subscribers_only=True)
        if not self.moved_away:
            with contextlib.suppress(errors.EngineError, TimeoutError):
                async with asyncio.timeout(GOODBYE_S):
                    await self._written()
                    await self._leave_all()
        self.is_closed = True
        await self._supervisor.stop()
        for partition in self.all:
            partition.calls.give_up("The engine is closed")
        self.topology.close()

    async def _leave_all(self) -> None:
        """Remove the members and counts of this worker at once, before its lease expires."""
        entered = [each for each in self.all if each.has_entered]
        left = len(entered)
        done: asyncio.Future[None] = self.loop.create_future()

        def removed() -> None:
            nonlocal left
            left -= 1
            if not left and not done.done():
                done.set_result(None)

        for partition in entered:
            partition.remove(partition.life, done=removed)
            partition.phase = Phase.AWAY
        if entered:
            await done

    def is_home(self) -> bool:
        return threading.get_ident() == self._thread

    def problem(self) -> str | None:
        """Why this worker cannot publish or does not follow, in one sentence."""
        for each in self.topology.links.values():
            if each.failure is not None and each.partitions:
                return each.failure
        unreported = "A gap in the log could not be handled; the next beat tries again" if self._unreported else None
        for why in (*self._failures.values(), self._supervisor.pausing("The heartbeat", "The connection"), unreported):
            if why is not None:
                return why
        away = sum(not each.is_following for each in self.all)
        if away:
            return f"{away} of {self.partitions} partitions of the log are not followed (yet)"
        silent_s = time.monotonic() - min(each.beaten_s for each in self.all)
        if silent_s > BEAT_S + link.SILENCE_S:
            return f"Redis has not answered the heartbeat for {silent_s:.0f} s"
        return None

    def statistics(self) -> dict[str, int | float]:
        return {
            "workers": self.workers,
            "partitions": self.partitions,
            "position": sum(each.position for each in self.all),
            "sessions": sum(each.sessions for each in self.all),
            "sessions_late": sum(each.sessions_late for each in self.all),
            "memory_bytes": self.memory[0],
            "memory_max_bytes": self.memory[1],
            "entries": 0,
            "snapshots": 0,
            "history_reads": 0,
            "history_shared": 0,
            "groups": 0,
            "operations": 0,
            "expired": 0,
            "delivery_failures": 0,
            **self.counters,
        }

    def fail(self, partition: Partition, why: str) -> None:
        """Health reports this until the partition works again."""
        if partition.index not in self._failures and why not in self._failures.values():
            logger.error("Partition %d of the log: %s", partition.index, why)
        self._failures[partition.index] = why

    def moved(self, partition: Partition, refusal: errors.EngineError) -> None:
        """The log is moved to another store, as an operator has planned it. Health reports it from now on."""
        why = str(refusal)
        if why not in self._failures.values():
            logger.warning("%s", why)
        self._failures[partition.index] = why
        if isinstance(refusal, errors.EngineMoved) and not self.moved_away:
            self.moved_away = why
            for each in self.all:
                each.calls.give_up(why)

    # -- from the connections ------------------------------------------------------------------------------------------

    def receive(self, messages: Sequence[tuple[bytes, bytes]]) -> None:
        """Messages of one read, in their order."""
        batch: list[interface.Entry] = []
        for name, payload in messages:
            route = self.routes.get(name)
            if route is not None:
                route[0].receive(route[1], payload, batch)
        self.hand_over(batch)

    def hand_over(self, batch: Sequence[interface.Entry]) -> None:
        """Deliver entries to the hub. If it fails, each partition of them has a gap."""
        if batch:
            self.counters["reads"] += 1
            self.counters["entries"] += len(batch)
            try:
                self._deliver(batch)
            except Exception:
                logger.exception("A delivery of the log failed")
                self.counters["delivery_failures"] += 1
                for partition in dict.fromkeys(self.of(entry.app, entry.channel) for entry in batch):
                    self.loop.call_soon(partition.delivery_failed)

    def dropped(self, name: bytes) -> None:
        """The server has ended a subscription: its slot has moved."""
        route = self.routes.get(name)
        if route is not None and route[0].is_following:
            route[0].leave_wire()
            self.relocate()

    def counted(self, group: Sequence[operations.Call], wants: Iterable[operations.Want]) -> None:
        """A group is sent. `wants`: each one of it once."""
        self.counters["groups"] += 1
        self.counters["operations"] += sum(len(call.operations) for call in group)
        wants = list(wants)
        self.counters["snapshots"] += sum(want[0] in ("m", "c", "n") and want[1] != "" for want in wants)
        reads = sum(want[0] == "h" and want[2] is not False for want in wants)
        asked = sum(want[0] == "h" and want[2] is not False for call in group for want in call.wants)
        self.counters["history_reads"] += reads
        self.counters["history_shared"] += asked - reads

    def entered(self, partition: Partition, error: errors.EngineError | None) -> None:
        """A partition is followed, or its primary refused."""
        if error is not None:
            self.fail(partition, str(error))
            if self._entered is not None and not self._entered.done():
                self._entered.set_exception(error)
            return
        self._failures.pop(partition.index, None)
        self.moved_away = ""  # or it was moved back
        self.sessions.repeat_releases()  # before a newer connection of the page takes the token
        if self._entered is None or self._entered.done():
            self._write_again(partition)
        elif all(each.is_following for each in self.all):
            self.workers = max(self.workers, 1)
            self._entered.set_result(None)

    def _write_again(self, partition: Partition) -> None:
        """The state of sockets without a channel, because the hub does not close them after a gap."""
        self.subscribers.forgotten(partition)
        self.subscriptions.repeat_users(partition)
        self.subscribers.write()
        if partition.index == 0:
            self._supervisor.spawn(
                "The record of the partitions", asyncio.to_thread(self._store.check), expected=(errors.EngineError,)
            )

    # -- gaps ----------------------------------------------------------------------------------------------------------

    def on_gap(self, partition: Partition, reason: str) -> None:
        """Call the hub. Its writes in the meantime are stored before delivery begins again."""
        self.counters["gaps"] += 1
        self._store.forget()  # a demoted primary would answer with old data
        if reason != moves.MOVED:  # which has its own line, one for all partitions
            logger.error(
                "Entries of partition %d may have been missed (%s): its clients reconnect", partition.index, reason
            )
        self.leases.lose(partition)
        partition.grow()
        if self._is_closing:
            return  # the hub closes its sockets itself and needs nothing of the engine
        self._report_gap(partition, reason)

    def _report_gap(self, partition: Partition, reason: str) -> None:
        self._in_gap = partition
        self._unreported.pop(partition, None)
        try:
            self._on_gap(reason, partition.index)
        except Exception:
            logger.exception("A gap of partition %d could not be handled; the next beat tries again", partition.index)
            self._unreported[partition] = reason
        finally:
            self._in_gap = None

    # -- the heartbeat -------------------------------------------------------------------------------------------------

    async def _tick(self) -> None:
        beat_at = time.monotonic()
        while True:
            now = time.monotonic()
            for each in list(self.topology.links.values()):
                each.look()
            if now >= beat_at:
                beat_at = max(beat_at + BEAT_S, now + BEAT_S / 2)
                for each in list(self.topology.links.values()):
                    each.beat()
                for partition, reason in list(self._unreported.items()):
                    self._report_gap(partition, reason)
                self.subscriptions.repeat_leaves()
                self.sessions.repeat_releases()
                self.leases.release_again()
                self.subscribers.write()
            self._expire(now)
            await asyncio.sleep(TICK_S)

    def _expire(self, now: float) -> None:
        self.counters["expired"] += sum(each.calls.expire(now - self._append_timeout) for each in self.all)
        self.leases.expire(now)

    def beaten(self, partition: Partition, sent: float, reply: Any) -> None:
        """The answer to a beat (scripts/beat.lua). `sent`: monotonic."""
        if isinstance(reply, errors.EngineError):
            return
        if isinstance(reply, Exception):
            partition.refused(reply)
            return
        generation, top, known, alive, dead, partition.sessions, partition.sessions_late, dropped, beats = reply
        partition.beaten_s = sent
        self.counters["sessions_dropped"] += dropped
        if not partition.has_entered:
            return
        if generation.decode() != partition.generation:
            partition.gap("generation_changed")
        elif not known:
            partition.gap("worker_unknown")
        else:
            partition.position = max(partition.position, top)
            partition.beats = beats
            if not partition.calls.is_full:
                self._failures.pop(partition.index, None)
            elif not partition.calls.is_busy:
                # Tests whether there is memory again.
                partition.calls.submit(operations.Call((), operations.ignore))
            if partition.index == 0:
                self.workers = alive
            for life in dead:
                self._reap(partition, life.decode())

    def _reap(self, partition: Partition, life: str) -> None:
        key = (partition.index, life)
        if life != partition.life and key not in self._reaping:
            self._reaping.add(key)
            partition.remove(life, forced=False, done=lambda: self._reaping.discard(key))

    # -- calls of the engine -------------------------------------------------------------------------------------------

    def listen(self, app: str, channel: str, on: bool) -> None:
        self.of(app, channel).listen(app, channel, on=on)

    def append(
        self, publications: Sequence[interface.Publication], budget: interface.Budget | None
    ) -> asyncio.Future[list[interface.Receipt]]:
        return self.appends.append(publications, budget)

    def post(self, publication: interface.Publication, failed: Callable[[str], None]) -> None:
        self.appends.post(publication, failed)

    def set_subscribers(self, app: str, channel: str, count: int, *, announce: bool) -> None:
        if channel != interface.CONNECTIONS:
            self.of(app, channel).subscribe(app, channel, on=count > 0)
        self.subscribers.set(app, channel, count, announce=announce)

    def attach(self, wanted: interface.SubscribeRequest, ready: interface.Ready) -> None:
        self.subscriptions.attach(wanted, ready)

    def leave(self, key: tuple[str, str, str]) -> None:
        self.subscriptions.leave(key)

    def admit(self, app: str, limit: int, ready: interface.Ready) -> None:
        self.subscriptions.admit(app, limit, ready)

    async def lease(self, name: str) -> leases.Lease:
        return await self.leases.acquire(name)

    # -- barriers ------------------------------------------------------------------------------------------------------

    def when_written(self, then: Callable[[], None]) -> None:
        """See `interface.Sessions`. Inside a gap, delivery begins again after `then`."""
        if self._in_gap is not None:
            then = _settling(self._in_gap, then)
        self.subscribers.write()
        busy = [each for each in self.all if each.calls.is_busy]
        left = len(busy)

        def settled(_answer: operations.Answer | None, _error: errors.EngineError | None) -> None:
            nonlocal left
            left -= 1
            if not left:
                then()

        for partition in busy:
            partition.calls.submit(operations.Call((), settled, frees=True))
        if not busy:
            then()

    async def _written(self) -> None:
        written = asyncio.Event()
        self.when_written(written.set)
        await written.wait()

    async def settled(self) -> None:
        """Return when all earlier writes are stored or have failed."""
        if not self.subscribers.are_written() or any(each.calls.is_busy for each in self.all):
            await self._written()


def _settling(partition: Partition, then: Callable[[], None]) -> Callable[[], None]:
    partition.settling += 1

    def run() -> None:
        try:
            then()
        finally:
            partition.settled()

    return run
