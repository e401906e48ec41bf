"""What every engine must do when workers die, freeze or are cut off, and when its store stops, stalls or loses entries.

A test class of an engine inherits `FailureConformance` and provides the fixture `deployment`.
"""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from fanfare.engine import errors, interface
from tests.harness import waiting
from tests.unit.engine.conformance import KEPT, replay
from tests.unit.engine.deployments import APPEND_TIMEOUT_S, LOG_SECONDS, Deployment
from tests.unit.engine.workers import APP, Worker

MARGIN_S = 30.0  # for a machine that does other work
GONE = interface.Kind.MEMBER_REMOVED
VACATED = interface.Kind.VACATED


class FailureConformance:
    """What holds after each failure of a worker or of the store."""

    # -- workers -------------------------------------------------------------------------------------------------------

    async def test_departure_of_a_killed_worker_is_announced_once_within_the_lease(
        self, deployment: Deployment
    ) -> None:
        one, two = await deployment.hire(), await deployment.hire()
        process = await deployment.process()
        await process.run(join, "presence-c", "ann", "9.1")
        await process.run(join, "presence-c", "ann", "9.2")
        await two.join("presence-c", "bob", "2.1")
        process.kill()
        for worker in (one, two):
            await worker.until(
                lambda worker=worker: VACATED in kinds(worker), "the departure", within=deployment.lease_s + MARGIN_S
            )
        await one.publish("end", b"1")
        await two.got("end", b"1")
        assert [entry.user_id for entry in two.entries if entry.kind == GONE] == ["ann"]
        assert kinds(two).count(VACATED) == 1
        assert await two.channel("presence-c") == interface.ChannelCounts(0, 1)

    async def test_lease_of_a_killed_worker_passes_on_to_one_worker(self, deployment: Deployment) -> None:
        one, two = await deployment.hire(), await deployment.hire()
        process = await deployment.process()
        term = await process.run(take_lease, "outbox")
        waiting_ = [asyncio.ensure_future(worker.engine.lease("outbox")) for worker in (one, two)]
        done, pending = await asyncio.wait(waiting_, timeout=0.5)
        assert not done, "it has two holders"
        process.kill()
        done, pending = await asyncio.wait(
            waiting_, timeout=deployment.lease_s + MARGIN_S, return_when=asyncio.FIRST_COMPLETED
        )
        assert [len(done), len(pending)] == [1, 1]
        first = done.pop().result()
        assert first.term > term
        first.release()
        second = await asyncio.wait_for(pending.pop(), MARGIN_S)
        assert second.term > first.term

    async def test_frozen_worker_gets_every_entry_or_reports_a_gap(self, deployment: Deployment) -> None:
        """It sleeps until the log is trimmed past its position."""
        one = await deployment.hire(log_seconds=LOG_SECONDS)
        process = await deployment.process(log_seconds=LOG_SECONDS)
        await one.publish("news", b"before")
        await process.run(until_body, "news", b"before")
        process.freeze()
        for number in range(3):
            await one.publish("news", b"missed %d" % number)
        await waiting.until_async(lambda: is_trimmed(deployment), 20, "the trim")
        process.thaw()
        await process.run(until_gap_or_bodies, "news", 4)
        await one.publish("news", b"after")
        await process.run(until_body, "news", b"after")

    async def test_frozen_worker_and_the_others_agree_about_its_members(self, deployment: Deployment) -> None:
        """It is frozen for longer than its lease: it stays a member, or its departure is announced and it has a gap."""
        one = await deployment.hire()
        process = await deployment.process()
        await process.run(join, "presence-c", "ann", "9.1")
        process.freeze()
        with contextlib.suppress(AssertionError):
            await one.until(lambda: GONE in kinds(one), "the departure", within=deployment.lease_s + 1)
        was_removed = GONE in kinds(one)
        process.thaw()
        if was_removed:
            await process.run(until_gap)
            assert await one.members("presence-c") == []
            await process.run(join, "presence-c", "ann", "9.3")
        await waiting.until_async(lambda: are_members(one, "ann"), MARGIN_S, "ann is a member")
        assert kinds(one).count(GONE) == was_removed

    async def test_worker_that_is_cut_off_for_a_moment_misses_nothing(self, deployment: Deployment) -> None:
        if not deployment.can_cut:
            return
        one, two = await deployment.hire(), await deployment.hire()
        await one.publish("news", b"0")
        await two.got("news", b"0")
        deployment.cut(two)
        bodies = [b"%d" % number for number in range(1, 30)]
        for body in bodies:
            await one.publish("news", body)
        with pytest.raises(errors.EngineUnavailable):
            await two.publish("lost", b"x")
        deployment.heal(two)
        await two.until(lambda: len(two.bodies("news")) == 30, "all entries", within=MARGIN_S)
        assert two.bodies("news") == [b"0", *bodies]
        await two.until(lambda: two.engine.health().ok, "its health is green", within=MARGIN_S)
        assert two.gaps == []

    async def test_worker_that_is_cut_off_until_the_log_is_trimmed_gets_every_entry_or_reports_a_gap(
        self, deployment: Deployment
    ) -> None:
        if not deployment.can_cut:
            return
        one, two = await deployment.hire(log_seconds=LOG_SECONDS), await deployment.hire(log_seconds=LOG_SECONDS)
        await one.publish("news", b"before")
        await two.got("news", b"before")
        deployment.cut(two)
        for number in range(3):
            await one.publish("news", b"missed %d" % number)
        await waiting.until_async(lambda: is_trimmed(deployment), 20, "the trim")
        await two.until(lambda: not two.engine.health().ok, "its health is red", within=deployment.lease_s + MARGIN_S)
        assert isinstance(await two.attach("calm"), interface.Refused)  # by now it has dropped its connection
        deployment.heal(two)
        await until_gap_or_bodies(two, "news", 4)
        await one.publish("news", b"after")
        await until_body(two, "news", b"after")

    async def test_lease_of_a_cut_off_worker_is_lost_before_another_gets_it(self, deployment: Deployment) -> None:
        if not deployment.can_cut:
            return
        one, two = await deployment.hire(), await deployment.hire()
        lease = await one.engine.lease("outbox")
        deployment.cut(one)
        taken = await asyncio.wait_for(two.engine.lease("outbox"), deployment.lease_s + MARGIN_S)
        assert lease.lost.is_set()
        assert not taken.lost.is_set()
        assert taken.term > lease.term
        assert not one.engine.health().ok
        deployment.heal(one)
        await one.until(lambda: one.engine.health().ok, "its health is green", within=MARGIN_S)

    # -- the store -----------------------------------------------------------------------------------------------------

    async def test_release_of_a_lease_while_the_store_is_away_is_written_later(self, deployment: Deployment) -> None:
        one, two = await deployment.hire(), await deployment.hire()
        lease = await one.engine.lease("outbox")
        deployment.stop_store()
        lease.release()
        with contextlib.suppress(errors.EngineUnavailable):
            await one.publish("news", b"after the release")
        deployment.start_store()
        for worker in (one, two):
            await worker.until(lambda worker=worker: worker.engine.health().ok, "health is green", within=MARGIN_S)
        later = await asyncio.wait_for(two.engine.lease("outbox"), MARGIN_S)
        assert later.term > lease.term
        assert one.gaps == []

    async def test_store_away_refuses_in_time_and_recovers_by_itself(self, deployment: Deployment) -> None:
        one, two = await deployment.hire(), await deployment.hire()
        for worker in (one, two):
            worker.engine.set_subscribers(APP, "calm", 1)
        await one.join("presence-c", "ann", "1.1")
        deployment.stop_store()
        one.engine.leave(APP, "presence-c", "1.1")
        one.engine.set_subscribers(APP, "calm", 7)
        with pytest.raises(errors.EngineUnavailable):
            await asyncio.wait_for(one.publish("news", b"lost"), APPEND_TIMEOUT_S + 1.5 + MARGIN_S)
        failures: list[str] = []
        one.engine.post(interface.Publication(APP, "news", b"lost"), failures.append)
        await one.until(lambda: failures, "the failure is reported", within=MARGIN_S)
        await one.until(lambda: not one.engine.health().ok, "health is red", within=MARGIN_S)
        assert one.engine.health().reason != "ok"
        refused = await asyncio.wait_for(one.attach("news"), MARGIN_S)
        assert isinstance(refused, interface.Refused)
        assert refused.code == "engine_unavailable"
        deployment.start_store()
        for worker in (one, two):
            await worker.until(
                lambda worker=worker: worker.engine.health().ok, "health is green again", within=MARGIN_S
            )
        await two.until(lambda: GONE in kinds(two), "the leave is written", within=MARGIN_S)
        await waiting.until_async(lambda: has_count(two, "calm", 8), MARGIN_S, "the count is written")
        await one.publish("news", b"after")
        for worker in (one, two):
            await worker.got("news", b"after")
        assert (one.gaps, two.gaps) == ([], [])

    async def test_when_written_waits_for_a_slow_store(self, deployment: Deployment) -> None:
        one, two = await deployment.hire(), await deployment.hire()
        written: list[str] = []
        with deployment.hold_store():
            one.engine.save_session(APP, "token", b"record", 60)
            one.engine.when_written(lambda: written.append("then"))
            await asyncio.sleep(0.2)
            assert written == []
        await one.until(lambda: written, "the record is written")
        assert await two.engine.load_session(APP, "token") == b"record"

    async def test_no_position_is_given_twice_after_a_restore(self, deployment: Deployment) -> None:
        """A backup is put back while workers run: they report a gap, and a position of before is of another epoch."""
        one, two = await deployment.hire(), await deployment.hire()
        await one.publish("kept", b"0", retention=KEPT)
        deployment.copy_store()
        lost = [receipt.position for receipt in await one.publish("kept", b"1", b"2", b"3", retention=KEPT)]
        await two.got("kept", b"0", b"1", b"2", b"3")
        deployment.restore_store()
        for worker in (one, two):
            await worker.until(lambda worker=worker: worker.gaps, "the gap", within=MARGIN_S)
            await worker.until(
                lambda worker=worker: worker.engine.health().ok, "it follows the restored log", within=MARGIN_S
            )
        given = [one.position for one in await two.publish_when_back(b"4", b"5", b"6", b"7", retention=KEPT)]
        await one.publish_when_back(b"8", retention=KEPT)
        assert not set(given) & set(lost)
        assert (await replay(one, after=lost[-1])).reason == "epoch_changed"
        for worker in (one, two):  # the backup may lack the record of a page
            assert (await worker.engine.take_session(APP, "token", "1.1")).lost_s is not None

    async def test_publication_straight_after_a_restore_gets_no_position_of_before(
        self, deployment: Deployment
    ) -> None:
        one = await deployment.hire()
        await one.publish("kept", b"0", retention=KEPT)
        deployment.copy_store()
        lost = [receipt.position for receipt in await one.publish("kept", b"1", b"2", retention=KEPT)]
        deployment.restore_store()
        try:
            given = [receipt.position for receipt in await one.publish("kept", b"3", b"4", retention=KEPT)]
        except errors.EngineUnavailable:
            return  # refused: the same to the publisher, who tries again
        assert not set(given) & set(lost)

    # -- publications, keys and records --------------------------------------------------------------------------------

    async def test_publications_of_one_channel_are_written_together_or_not_at_all(self, deployment: Deployment) -> None:
        one, two = await deployment.hire(), await deployment.hire()
        torn = [
            interface.Publication(APP, "news", b"1"),
            interface.Publication(APP, "news", b"2", user_id="\ud800"),  # no store can hold it
            interface.Publication(APP, "news", b"3"),
        ]
        whole, refused = await asyncio.gather(
            one.publish("calm", b"whole"), one.engine.append(torn), return_exceptions=True
        )
        assert isinstance(refused, errors.EngineUnavailable)
        assert not isinstance(whole, BaseException), "a neighbour was refused as well"
        await one.publish("end", b"")
        await two.got("end", b"")
        assert two.bodies("news") == []

    async def test_idempotency_key_outlives_seconds_and_its_publisher(self, deployment: Deployment) -> None:
        one = await deployment.hire()
        process = await deployment.process()
        [first] = await process.run(publish_with_key, "kept", b"1", "key")
        process.kill()
        await asyncio.sleep(1.1)
        [again] = await one.publish("kept", b"1", idempotency_key="key", retention=KEPT)
        assert (again.position, again.duplicate) == (first.position, True)

    async def test_late_record_of_a_session_survives_the_trim(self, deployment: Deployment) -> None:
        one = await deployment.hire(log_seconds=LOG_SECONDS)
        one.engine.save_session(APP, "token", b"late", -1)
        await one.publish("news", b"x")
        await waiting.until_async(lambda: is_trimmed(deployment), 20, "the trim")
        assert await one.engine.load_session(APP, "token") == b"late"

    async def test_kept_entries_survive_the_trim(self, deployment: Deployment) -> None:
        one = await deployment.hire(log_seconds=LOG_SECONDS)
        [first, _] = await one.publish("kept", b"1", b"2", retention=KEPT)
        await one.publish("news", b"x")
        await waiting.until_async(lambda: is_trimmed(deployment, but=2), 20, "the trim")
        replayed = await replay(one, after=interface.Position(first.position.epoch, 0))
        assert [entry.body for entry in replayed.entries] == [b"1", b"2"]

    async def test_consumer_gets_every_entry_of_its_kinds_after_a_trim(self, deployment: Deployment) -> None:
        """A later holder of the lease begins where the one that was killed ended."""
        one = await deployment.hire(log_seconds=LOG_SECONDS)
        process = await deployment.process(log_seconds=LOG_SECONDS)
        await process.run(begin_to_consume, "webhooks")
        process.kill()
        for number in range(5):
            await one.publish("news", b"event", b"event")
            await one.publish("news", b"%d" % number, kind=interface.Kind.CLIENT_EVENT)
        await waiting.until_async(lambda: is_trimmed(deployment, but=5), 20, "the trim of the other kinds")
        partition = one.engine.partition(APP, "news")
        consumer = await one.engine.consume("webhooks", partition, frozenset([interface.Kind.CLIENT_EVENT]))
        found: list[bytes] = []
        while len(found) < 5:
            entries = await consumer.next(2, 1)
            assert entries, found
            found += [entry.body for entry in entries]
            await consumer.keep(entries[-1].id)
        assert found == [b"%d" % number for number in range(5)]

    async def test_log_keeps_nothing_for_a_transient_consumer_after_a_trim(self, deployment: Deployment) -> None:
        one = await deployment.hire(log_seconds=LOG_SECONDS)
        partition = one.engine.partition(APP, "news")
        consumer = await one.engine.consume("tail", partition, frozenset([interface.Kind.EVENT]), transient=True)
        await one.publish("news", b"1", b"2")
        await waiting.until_async(lambda: is_trimmed(deployment, but=0), 30, "the trim")
        await one.publish("news", b"3")
        assert [entry.body for entry in await consumer.next(10, 30)][-1] == b"3"
        await consumer.keep(consumer.position)

    # -- processes that publish at the same time -----------------------------------------------------------------------

    async def test_entries_of_concurrent_processes_arrive_once_and_in_one_order(self, deployment: Deployment) -> None:
        """Also where a snapshot is asked for in between: it stands exactly where the entries end."""
        one, two = await deployment.hire(), await deployment.hire()
        processes = [await deployment.process() for _ in range(2)]
        publishing = [asyncio.ensure_future(one.run(publish_many, str(index))) for index, one in enumerate(processes)]
        compared: list[tuple[int, int]] = []

        def ready(answer: interface.SubscribeResult | interface.Refused) -> None:
            assert isinstance(answer, interface.SubscribeResult)
            assert answer.replayed is not None
            assert answer.replayed.position is not None
            offsets = [entry.offset or 0 for entry in two.entries if entry.channel == "kept"]
            compared.append((answer.replayed.position.offset, max(offsets, default=0)))

        asked = 0
        while not all(one.done() for one in publishing):
            history = interface.RecoveryRequest()
            wanted = interface.SubscribeRequest(APP, "kept", durable=asked % 2 == 0, history=history)
            two.engine.attach(wanted, ready)
            asked += 1
            await asyncio.sleep(0.002)
        for task in publishing:
            task.result()
        await two.until(lambda: len(compared) == asked, "all answers")
        for worker in (one, two):
            await worker.until(lambda worker=worker: len(worker.bodies("kept")) == 400, "all entries", within=MARGIN_S)
            offsets = [entry.offset for entry in worker.entries if entry.channel == "kept"]
            assert offsets == list(range(1, 401))
        assert one.bodies("kept") == two.bodies("kept")
        for index in range(2):
            mine = [body for body in one.bodies("kept") if body.startswith(b"%d:" % index)]
            assert mine == [b"%d:%d" % (index, number) for number in range(200)]
        assert [position for position, _ in compared] == [delivered for _, delivered in compared]

    async def test_snapshots_of_one_channel_that_are_answered_together_are_read_once(
        self, deployment: Deployment
    ) -> None:
        one = await deployment.hire()
        before = one.engine.statistics()["snapshots"]
        answers = await asyncio.gather(*(one.join("presence-c", f"user {n}", f"1.{n}") for n in range(60)))
        assert max(map(len, answers)) == 60
        assert one.engine.statistics()["snapshots"] - before < 30


# -- what tests look at ------------------------------------------------------------------------------------------------


def kinds(worker: Worker) -> list[int]:
    return [entry.kind for entry in worker.entries]


async def is_trimmed(deployment: Deployment, *, but: int = 0) -> bool:
    return await asyncio.to_thread(deployment.stored) <= but


async def are_members(worker: Worker, *users: str) -> bool:
    return [member.user_id for member in await worker.members("presence-c")] == list(users)


async def has_count(worker: Worker, channel: str, count: int) -> bool:
    return (await worker.channel(channel)).subscriptions == count


# -- what runs in another process --------------------------------------------------------------------------------------


async def join(worker: Worker, channel: str, user_id: str, socket_id: str) -> None:
    worker.engine.set_subscribers(APP, channel, 1)
    await worker.join(channel, user_id, socket_id)


async def take_lease(worker: Worker, name: str) -> int:
    return (await worker.engine.lease(name)).term


async def until_body(worker: Worker, channel: str, body: bytes) -> None:
    await worker.until(lambda: worker.bodies(channel)[-1:] == [body], f"{body!r} arrives")


async def until_gap(worker: Worker) -> None:
    """A gap was reported, and the worker follows the log again."""
    await worker.until(lambda: worker.gaps, "the gap")
    await worker.until(lambda: worker.engine.health().ok, "it follows the log again")


async def until_gap_or_bodies(worker: Worker, channel: str, count: int) -> None:
    """A gap was reported, and the worker follows the log again; or nothing is missing."""
    await worker.until(lambda: worker.gaps or len(worker.bodies(channel)) == count, "the gap or all entries")
    await worker.until(lambda: worker.engine.health().ok, "it follows the log again")


async def publish_with_key(worker: Worker, channel: str, body: bytes, key: str) -> list[interface.Receipt]:
    return await worker.publish(channel, body, idempotency_key=key, retention=KEPT)


async def publish_many(worker: Worker, name: str) -> None:
    """200 publications, a few of them at a time."""
    retention = interface.Retention(1_000, 60)
    for first in range(0, 200, 4):
        await asyncio.gather(
            *(worker.publish("kept", f"{name}:{first + n}".encode(), retention=retention) for n in range(4))
        )


async def begin_to_consume(worker: Worker, name: str) -> None:
    await worker.engine.consume(name, worker.engine.partition(APP, "news"), frozenset([interface.Kind.CLIENT_EVENT]))
