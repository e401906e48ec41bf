"""A worker on Redis: its connections, its partitions, and the state that it writes again after the store lost it."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import functools
import logging
import os
import secrets
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import hiredis

from fanfare.engine import errors, interface
from fanfare.engine.redis import link, operations, scripts
from fanfare.engine.redis.partition import Partition, Phase
from fanfare.engine.redis.queries import Store
from fanfare.engine.redis.topology import Topology
from fanfare.runtime.supervisor import Supervisor

logger = logging.getLogger(__name__)

BEAT_S: Final = 1.0
TICK_S: Final = 0.25
COUNTS_S: Final = 0.02  # counts without a waiting caller are written this much later, with others
LEASE_POLL_S: Final = 1.0
GOODBYE_S: Final = 5.0
OPEN_S: Final = 10.0

_ENTITY = tuple[str, str]


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
        self.routes: dict[bytes, tuple[Partition, str]] = {}  # channels of the store that are wanted here
        self.memory = (0, 0)  # used, at most (0: no bound)
        self.workers = 0
        self.is_opening = True
        self.is_closed = False
        self._is_closing = False
        self.beat_arguments = (
            scripts.LEASE_S * 1000,
            int(log_seconds * 1000),
            max(1, interface.LATE_SESSIONS // self.partitions),
        )
        self.all = [Partition(self, index) for index in range(self.partitions)]
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
        self._counts: list[dict[_ENTITY, tuple[int, bool]]] = [{} for _ in self.all]  # not written yet
        self._counted: list[dict[_ENTITY, tuple[int, bool]]] = [{} for _ in self.all]  # of applications, to write again
        self._users: list[dict[tuple[str, str], interface.Member]] = [{} for _ in self.all]  # signed in here
        self._counts_timer: asyncio.TimerHandle | None = None
        self._announcing: dict[_ENTITY, asyncio.TimerHandle] = {}
        self._leaving: dict[tuple[str, str, str], bool] = {}  # True: the leave failed and is submitted again
        self._releases: dict[_ENTITY, _Release] = {}  # by application and token: not written yet
        self._leases: list[Lease] = []
        self._reaping: set[tuple[int, str]] = set()

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
        if self._counts_timer is not None:
            self._counts_timer.cancel()
        for timer in self._announcing.values():
            timer.cancel()
        for lease in list(self._leases):
            lease.lost.set()
        self._leases.clear()
        for partition in self.all:
            partition.give_up("The engine is closed", subscribers_only=True)
        with contextlib.suppress(errors.EngineError, TimeoutError):
            async with asyncio.timeout(GOODBYE_S):
                await self._written()
                await self._leave_all()
        self.is_closed = True
        await self._supervisor.stop()
        for partition in self.all:
            partition.give_up("The engine is closed")
        self.topology.close()

    async def _leave_all(self) -> None:
        """Remove the members and counts of this worker at once, before its lease expires."""
        following = [each for each in self.all if each.phase in (Phase.FOLLOWING, Phase.SETTLING)]
        left = len(following)
        done: asyncio.Future[None] = self.loop.create_future()

        def removed() -> None:
            nonlocal left
            left -= 1
            if not left and not done.done():
                done.set_result(None)

        for partition in following:
            partition.remove(partition.life, done=removed)
            partition.phase = Phase.AWAY
        if following:
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
        away = [each.index for each in self.all if each.phase is not Phase.FOLLOWING]
        if away:
            return f"{len(away)} of {self.partitions} partitions of the log are not followed (yet)"
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
        if route is not None and route[0].phase is Phase.FOLLOWING:
            route[0].leave_wire()
            self.relocate()

    def counted(self, group: Sequence[operations.Call], wants: Iterable[operations.Want]) -> None:
        self.counters["groups"] += 1
        self.counters["operations"] += sum(len(call.operations) for call in group)
        wants = list(wants)
        self.counters["snapshots"] += sum(want[0] in ("m", "c", "n") and want[1] != "" for want in wants)
        reads = sum(want[0] == "h" and want[2] is not False for want in wants)
        asked = sum(want[0] == "h" and want[2] is not False for call in group for want in call.wants)
        self.counters["history_reads"] += reads
        self.counters["history_shared"] += asked - reads

    def fail(self, partition: Partition, why: str) -> None:
        if partition.index not in self._failures and why not in self._failures.values():
            logger.error("Partition %d of the log: %s", partition.index, why)
        self._failures[partition.index] = why

    def entered(self, partition: Partition, error: errors.EngineError | None) -> None:
        """A partition is followed, or its primary refused."""
        if error is not None:
            self.fail(partition, str(error))
            if self._entered is not None and not self._entered.done():
                self._entered.set_exception(error)
            return
        self._failures.pop(partition.index, None)
        self._repeat_releases()  # before a newer connection of the page takes the token
        if self._entered is None or self._entered.done():
            self._say_again(partition)
        elif all(each.phase is Phase.FOLLOWING for each in self.all):
            self.workers = max(self.workers, 1)
            self._entered.set_result(None)

    def _say_again(self, partition: Partition) -> None:
        """Write again the state of sockets without a channel, which the hub does not close after a gap."""
        index = partition.index
        for key, count in self._counted[index].items():
            self._counts[index].setdefault(key, count)
        with contextlib.suppress(errors.EngineError):
            for (app, socket_id), member in self._users[index].items():
                partition.submit(operations.Call([_join(app, interface.USERS, socket_id, member, None)], _ignore))
        self._write_counts()
        if index == 0:
            self._supervisor.spawn(
                "The record of the partitions", asyncio.to_thread(self._store.check), expected=(errors.EngineError,)
            )

    def on_gap(self, partition: Partition, reason: str) -> None:
        """Call the hub. Its writes in the meantime are stored before delivery begins again."""
        self.counters["gaps"] += 1
        self._store.forget()  # a demoted primary would answer with old data
        index = partition.index
        logger.error("Entries of partition %d may have been missed (%s): its clients reconnect", index, reason)
        for lease in self._leases:
            if lease.partition is partition:
                lease.lost.set()
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

    # -- the beat ------------------------------------------------------------------------------------------------------

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
                self._repeat_leaves()
                self._repeat_releases()
                self._write_counts()
            self._expire(now)
            await asyncio.sleep(TICK_S)

    def _expire(self, now: float) -> None:
        late = sum(each.expire(now - self._append_timeout) for each in self.all)
        self.counters["expired"] += late
        for lease in self._leases:
            # A second before another worker may have it.
            if now - lease.partition.beaten_s > scripts.LEASE_S - 1.0:
                lease.lost.set()

    def beaten(self, partition: Partition, sent: float, reply: Any) -> None:
        if isinstance(reply, errors.EngineError):
            return
        if isinstance(reply, Exception):
            partition.refused(reply)
            return
        generation, top, known, alive, dead, partition.sessions, partition.sessions_late, dropped = reply
        partition.beaten_s = sent
        self.counters["sessions_dropped"] += dropped
        if partition.phase not in (Phase.FOLLOWING, Phase.SETTLING):
            return
        if generation.decode() != partition.generation:
            partition.gap("generation_changed")
        elif not known:
            partition.gap("worker_unknown")
        else:
            partition.position = max(partition.position, top)
            if not partition.is_full:
                self._failures.pop(partition.index, None)
            elif not partition.is_busy:
                with contextlib.suppress(errors.EngineError):  # tests whether there is memory again
                    partition.submit(operations.Call((), _ignore))
            if partition.index == 0:
                self.workers = alive
            for life in dead:
                self._reap(partition, life.decode())

    def _reap(self, partition: Partition, life: str) -> None:
        key = (partition.index, life)
        if life != partition.life and key not in self._reaping:
            self._reaping.add(key)
            partition.remove(life, forced=False, done=lambda: self._reaping.discard(key))

    # -- writes --------------------------------------------------------------------------------------------------------

    def of(self, app: str, channel: str) -> Partition:
        return self.all[self._store.partition(app, channel)]

    def listen(self, app: str, channel: str, on: bool) -> None:
        self.of(app, channel).listen(app, channel, on=on)

    def append(
        self, publications: Sequence[interface.Publication], budget: interface.Budget | None
    ) -> asyncio.Future[list[interface.Receipt]]:
        done: asyncio.Future[list[interface.Receipt]] = self.loop.create_future()
        if budget is None:
            self._append(publications, done)
            return done

        def granted(answer: operations.Answer | None, error: errors.EngineError | None) -> None:
            if done.done():
                return
            if answer is None:
                done.set_exception(error or errors.EngineUnavailable("Redis did not answer"))
            elif answer.results[0] != 0:
                done.set_exception(errors.OverBudget(*answer.results[0]))
            else:
                self._append(publications, done)

        ask = ("b", budget.app, budget.per_second, len(publications))
        self.of(budget.app, interface.CONNECTIONS).submit(operations.Call([ask], granted))
        return done

    def _append(
        self, publications: Sequence[interface.Publication], done: asyncio.Future[list[interface.Receipt]]
    ) -> None:
        """Append publications; those of one partition are one call."""
        calls: dict[Partition, list[int]] = {}
        for index, publication in enumerate(publications):
            calls.setdefault(self.of(publication.app, publication.channel), []).append(index)
        try:
            wanted = [operations.append(publication) for publication in publications]
        except UnicodeEncodeError as error:
            done.set_exception(errors.EngineUnavailable(f"A publication is not Unicode text: {error}"))
            return
        gathered = _Receipts(len(publications), len(calls), done)
        for partition, indexes in calls.items():
            settled = functools.partial(gathered.settled, indexes)
            size = sum(len(publications[index].body) for index in indexes)
            try:
                partition.submit(operations.Call([wanted[index] for index in indexes], settled, size=size))
            except errors.EngineError as error:
                settled(None, error)
        if not calls:
            done.set_result([])

    def post(self, publication: interface.Publication, failed: Callable[[str], None]) -> None:
        def settled(answer: operations.Answer | None, error: errors.EngineError | None) -> None:
            try:
                if answer is not None:
                    operations.check(answer.results[0])
            except errors.EngineError as refused:
                error = refused
            if error is not None:
                failed(str(error))

        try:
            call = operations.Call([operations.append(publication)], settled, size=len(publication.body))
            self.of(publication.app, publication.channel).submit(call)
        except (errors.EngineError, UnicodeEncodeError) as error:
            failed(str(error))

    async def done(
        self, partition: Partition, operation: operations.Operation | None = None, want: operations.Want | None = None
    ) -> operations.Answer:
        """One operation or want, and its answer. Raises EngineUnavailable."""
        done: asyncio.Future[operations.Answer] = self.loop.create_future()

        def settled(answer: operations.Answer | None, error: errors.EngineError | None) -> None:
            if done.done():
                return
            if answer is None:
                done.set_exception(error or errors.EngineUnavailable("Redis did not answer"))
            else:
                done.set_result(answer)

        wanted = [operation] if operation else []
        partition.submit(operations.Call(wanted, settled, wants=[want] if want else ()))
        answer = await done
        for result in answer.results:
            operations.check(result)
        return answer

    def submit(self, partition: Partition, *wanted: operations.Operation) -> None:
        """Without an answer. Raises EngineUnavailable."""
        partition.submit(operations.Call(wanted, _ignore))

    def when_written(self, then: Callable[[], None]) -> None:
        if self._in_gap is not None:
            then = _settling(self._in_gap, then)
        self._write_counts()
        busy = [each for each in self.all if each.is_busy]
        left = len(busy)

        def settled(_answer: operations.Answer | None, _error: errors.EngineError | None) -> None:
            nonlocal left
            left -= 1
            if not left:
                then()

        for partition in busy:
            call = operations.Call((), settled, frees=True)
            try:
                partition.submit(call)
            except errors.EngineError:
                settled(None, None)
        if not busy:
            then()

    async def _written(self) -> None:
        written = asyncio.Event()
        self.when_written(written.set)
        await written.wait()

    async def settled(self) -> None:
        """Return when all earlier writes are stored or have failed."""
        if any(self._counts) or any(each.is_busy for each in self.all):
            await self._written()

    # -- presence and counts -------------------------------------------------------------------------------------------

    def set_subscribers(self, app: str, channel: str, count: int, *, announce: bool) -> None:
        partition = self.of(app, channel)
        key = (app, channel)
        if channel == interface.CONNECTIONS:
            # Kept, to write it again to a store that has lost it.
            kept = self._counted[partition.index]
            if count:
                kept[key] = (count, announce)
            else:
                kept.pop(key, None)
        else:
            partition.interest(app, channel, on=count > 0)
        self._counts[partition.index][key] = (count, announce)
        if self._counts_timer is None:
            self._counts_timer = self.loop.call_later(COUNTS_S, self._write_counts)

    def _write_counts(self) -> None:
        if self._counts_timer is not None:
            self._counts_timer.cancel()
            self._counts_timer = None
        for partition, counts in zip(self.all, self._counts, strict=True):
            if counts and not self.is_closed:
                self._write_counts_of(partition)

    def _write_counts_of(self, partition: Partition) -> None:
        counts, self._counts[partition.index] = self._counts[partition.index], {}
        if not counts:
            return
        for frees in (True, False):
            some = {key: count for key, count in counts.items() if (count[0] == 0) is frees}
            if some:
                self._submit_counts(partition, some, frees=frees)

    def _submit_counts(self, partition: Partition, counts: dict[_ENTITY, tuple[int, bool]], *, frees: bool) -> None:
        def settled(answer: operations.Answer | None, _error: errors.EngineError | None) -> None:
            if answer is None:
                self.counters["counts_retried"] += 1
                self._counts[partition.index] = {**counts, **self._counts[partition.index]}
                return
            for key, wait_ms in zip(counts, answer.results, strict=True):
                if not isinstance(wait_ms, Exception):
                    self._announce_later(key, wait_ms)

        wanted = [
            ("n", operations.identity(app, channel), app, channel, count, announce)
            for (app, channel), (count, announce) in counts.items()
        ]
        try:
            partition.submit(operations.Call(wanted, settled, frees=frees))
        except errors.EngineError:
            settled(None, None)

    def _announce_later(self, channel: _ENTITY, wait_ms: int) -> None:
        if wait_ms and channel not in self._announcing:
            self._announcing[channel] = self.loop.call_later(wait_ms / 1000, self._announce, channel)

    def _announce(self, channel: _ENTITY) -> None:
        del self._announcing[channel]

        def settled(answer: operations.Answer | None, _error: errors.EngineError | None) -> None:
            # If it could not be written, the next change announces.
            if answer is not None and not isinstance(answer.results[0], Exception):
                self._announce_later(channel, answer.results[0])

        with contextlib.suppress(errors.EngineError):
            call = operations.Call([("c", operations.identity(*channel), *channel)], settled)
            self.of(*channel).submit(call)

    def attach(self, wanted: interface.SubscribeRequest, ready: interface.Ready) -> None:
        partition = self.of(wanted.app, wanted.channel)
        if wanted.durable:
            self._write_counts()
        member, name = wanted.member, (wanted.app, wanted.socket_id)
        todo: list[operations.Operation] = []
        if member is not None:
            self._leaving.pop((wanted.app, wanted.channel, wanted.socket_id), None)
            todo.append(_join(wanted.app, wanted.channel, wanted.socket_id, member, wanted.member_limit))
            if wanted.channel == interface.USERS:
                self._users[partition.index][name] = member
        wants = operations.wants(wanted)

        def settled(answer: operations.Answer | None, error: errors.EngineError | None) -> None:
            try:
                ready(_result(wanted, answer, error))
            except errors.EngineError as refused:
                ready(interface.Refused("engine_unavailable", str(refused)))

        try:
            # The want of a subscriber without any is the barrier itself: after a gap it waits too.
            partition.submit(operations.Call(todo, settled, wants=wants or [("n", "")]))
        except errors.EngineError as error:
            ready(interface.Refused("engine_unavailable", str(error)))

    def leave(self, key: tuple[str, str, str]) -> None:
        app, channel, socket_id = key
        self._leaving[key] = False
        partition = self.of(app, channel)
        if channel == interface.USERS:
            self._users[partition.index].pop((app, socket_id), None)

        def settled(answer: operations.Answer | None, _error: errors.EngineError | None) -> None:
            if key not in self._leaving:
                return
            if answer is not None:
                del self._leaving[key]
            else:
                self.counters["leaves_retried"] += 1
                self._leaving[key] = True

        try:
            operation = ("l", operations.identity(app, channel), app, channel, socket_id)
            partition.submit(operations.Call([operation], settled, frees=True))
        except errors.EngineError:
            self._leaving[key] = True

    def _repeat_leaves(self) -> None:
        for key in [key for key, failed in self._leaving.items() if failed]:
            self.leave(key)

    def admit(self, app: str, limit: int, ready: interface.Ready) -> None:
        partition = self.of(app, interface.CONNECTIONS)
        self._write_counts_of(partition)

        def settled(answer: operations.Answer | None, error: errors.EngineError | None) -> None:
            if answer is None or isinstance(answer.results[0], Exception):
                ready(interface.Refused("engine_unavailable", str(error or answer)))
            elif answer.results[0] != 0:
                limit, others = answer.results[0]
                message = f"The application's maximum number of connections is reached ({others} of {limit})"
                ready(interface.Refused("connection_limit", message, limit, others))
            else:
                ready(interface.SubscribeResult())

        try:
            operation = ("q", operations.identity(app, interface.CONNECTIONS), limit)
            partition.submit(operations.Call([operation], settled))
        except errors.EngineError as error:
            ready(interface.Refused("engine_unavailable", str(error)))

    # -- sessions ------------------------------------------------------------------------------------------------------

    def session_partition(self, app: str, token: str) -> Partition:
        return self.of(app, f"#session-{token}")

    def save_session(self, app: str, token: str, operation: operations.Operation, *, release: bool) -> None:
        """Raises EngineUnavailable. A release is written with full memory too, and again if it fails. A token that
        keeps the socket of a page that has left is taken from it, and is refused as shared after the second time."""
        if release:
            self._release((app, token), operation)
        else:
            self._releases.pop((app, token), None)
            self.session_partition(app, token).submit(operations.Call([operation], _ignore))

    def _release(self, name: _ENTITY, operation: operations.Operation, *, again: bool = False) -> None:
        if again:
            *fields, _ = operation
            operation = (*fields, 2)
        release = self._releases[name] = _Release(operation)

        def settled(answer: operations.Answer | None, _error: errors.EngineError | None) -> None:
            if self._releases.get(name) is not release:
                return
            if answer is not None:
                del self._releases[name]
            else:
                self.counters["releases_retried"] += 1
                release.has_failed = True

        try:
            call = operations.Call([operation], settled, frees=True)
            self.session_partition(*name).submit(call, urgent=again)
        except errors.EngineError:
            release.has_failed = True

    def _repeat_releases(self) -> None:
        for name, release in list(self._releases.items()):
            if release.has_failed:
                self._release(name, release.operation, again=True)

    # -- leases --------------------------------------------------------------------------------------------------------

    async def lease(self, name: str) -> Lease:
        """Wait until this worker holds `name`."""
        partition = self.all[zlib.crc32(name.encode()) % self.partitions]
        while not self.is_closed:
            with contextlib.suppress(errors.EngineUnavailable):
                life = partition.life
                asked = time.monotonic()
                answer = await self.done(partition, ("e", name))
                term = answer.results[0]
                # Its life is as long as the last beat allows, and a new life has none of the old one's leases.
                if term and life == partition.life and asked - partition.beaten_s < scripts.LEASE_S - 1.0:
                    lease = Lease(self, partition, name, term)
                    self._leases.append(lease)
                    return lease
            await asyncio.sleep(LEASE_POLL_S)
        raise errors.EngineUnavailable(f"The engine was closed before the lease {name} was free")

    def release(self, lease: Lease) -> None:
        is_held = not lease.lost.is_set()
        lease.lost.set()
        if lease in self._leases:
            self._leases.remove(lease)
            if is_held and not self.is_closed:
                with contextlib.suppress(errors.EngineError):
                    self.submit(lease.partition, ("r", lease.name))


class Lease(interface.Lease):
    """Lost a second before the store may give it to another worker."""

    lost: asyncio.Event

    def __init__(self, worker: Worker, partition: Partition, name: str, term: int) -> None:
        self.lost = asyncio.Event()
        self.partition = partition
        self.name = name
        self.term = term
        self._worker = worker

    def release(self) -> None:
        self._worker.release(self)


@dataclass(slots=True, eq=False)
class _Release:
    """Of a session that this worker held."""

    operation: operations.Operation
    has_failed: bool = False  # and is submitted again


class _Receipts:
    """The answers of several partitions to one `append`."""

    def __init__(self, count: int, calls: int, done: asyncio.Future[list[interface.Receipt]]) -> None:
        self._receipts: dict[int, interface.Receipt] = {}
        self._count = count
        self._left = calls
        self._failure: errors.EngineError | None = None
        self._done = done

    def settled(
        self, indexes: Sequence[int], answer: operations.Answer | None, error: errors.EngineError | None
    ) -> None:
        self._left -= 1
        try:
            if answer is not None:
                for index, result in zip(indexes, answer.results, strict=True):
                    self._receipts[index] = operations.receipt(result)
        except errors.EngineError as refused:
            error = refused
        self._failure = self._failure or error
        if self._left or self._done.done():
            return
        if self._failure is not None:
            self._done.set_exception(self._failure)
        else:
            self._done.set_result([self._receipts[index] for index in range(self._count)])


def _join(app: str, channel: str, socket_id: str, member: interface.Member, limit: int | None) -> operations.Operation:
    name = operations.identity(app, channel)
    return ("j", name, app, channel, socket_id, member.user_id, member.info, False if limit is None else limit)


def _result(
    wanted: interface.SubscribeRequest, answer: operations.Answer | None, error: errors.EngineError | None
) -> interface.SubscribeResult | interface.Refused:
    """Raises EngineUnavailable if a part failed."""
    if answer is None:
        return interface.Refused("engine_unavailable", str(error))
    for result in answer.results:
        operations.check(result)
        if result != 0:
            limit, actual = result
            message = f"The channel has {actual} members; {limit} are allowed"
            return interface.Refused("member_limit", message, limit, actual)
    values = {want[0]: operations.value_of(want, answer, wanted) for want in operations.wants(wanted)}
    return interface.SubscribeResult(
        members=values.get("m", ()),
        cached=values.get("c"),
        subscribers=values.get("n", 0),
        online=tuple(user for user, is_online in zip(wanted.watch, values.get("o", ()), strict=False) if is_online),
        replayed=values.get("h"),
        streams=values.get("t", ()),
    )


def _settling(partition: Partition, then: Callable[[], None]) -> Callable[[], None]:
    partition.settling += 1

    def run() -> None:
        try:
            then()
        finally:
            partition.settled()

    return run


def _ignore(_answer: operations.Answer | None, _error: errors.EngineError | None) -> None:
    """The outcome does not matter to the caller."""
