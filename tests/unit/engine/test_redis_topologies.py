"""The Redis engine with TLS, Sentinel and a cluster, on real servers."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator

import pytest

from fanfare.engine import errors, interface
from fanfare.engine.redis import address, queries
from fanfare.engine.redis import engine as redis_engine
from fanfare.engine.redis import link as redis_link
from tests.harness import redisserver, waiting
from tests.unit.engine import conformance, streams
from tests.unit.engine.test_redis import Publisher, assert_delivered, healthy
from tests.unit.engine.workers import APP, Worker


@contextlib.asynccontextmanager
async def workers(url: str, count: int = 2) -> AsyncIterator[list[Worker]]:
    hired = [Worker(redis_engine.RedisEngine(url)) for _ in range(count)]
    try:
        for worker in hired:
            await worker.open()
        yield hired
    finally:
        for worker in hired:
            await worker.engine.close()


async def crosses(one: Worker, two: Worker, body: bytes) -> None:
    """An event, a member and a blocking publication reach the other worker."""
    await one.publish("news", body)
    publication = interface.Publication(APP, "news", body + b" blocking")
    await asyncio.to_thread(one.engine.append_blocking, [publication])
    await two.until(lambda: two.bodies("news")[-2:] == [body, body + b" blocking"], "both events", within=60)
    assert await one.join("presence-c", body.decode(), f"{body.decode()}.1") == [
        member.user_id for member in await two.members("presence-c")
    ]


async def streams_and_revisions_cross(one: Worker, two: Worker) -> None:
    """Channels `c` and `d` are in partitions of different servers, and share the application's limit."""
    done = await streams.put(one, streams.opening(), streams.write(0, 1, 2, part=b"hi", body=b"1"))
    [refused] = await streams.put(one, streams.opening(channel="d", max_in_app=1))
    assert refused == interface.StreamReceipt(False, None, limit=1, actual=1)
    done += await streams.put(one, streams.end(1, 2, retention=streams.KEPT))
    [other] = await streams.put(one, streams.opening(channel="d", max_in_app=1))
    assert all(receipt.done for receipt in (*done, other))
    await two.until(lambda: two.bodies("c") == [b"open", b"1", b"whole"], "the stream", within=60)
    [entry], position = await two.read("c", 0, 10)
    assert position is not None
    revision = interface.Revision(APP, "c", position, b"", b"notice")
    assert entry.body == b"whole"
    assert await asyncio.to_thread(one.engine.revise, revision) == position._replace(offset=2)
    assert await asyncio.to_thread(one.engine.update_member, APP, "presence-c", "1", "{}")
    await two.until(lambda: two.bodies("presence-c")[-1:] == [b"{}"], "the member's update", within=60)


async def test_tls_with_a_user_and_a_private_authority() -> None:
    with redisserver.with_tls() as server:
        own = {"ssl": True, "ssl_ca_certs": str(server.folder / "ca.crt")}
        client = redisserver.redis.Redis("127.0.0.1", server.answering_port, **own)
        rule = "~fanfare:* &fanfare:* +@read +@write +@scripting +@connection +@pubsub +info +time"
        client.execute_command("ACL", "SETUSER", "fanfare", "on", ">hunter2", *rule.split())
        client.execute_command("ACL", "SETUSER", "default", "off")
        client.close()
        where = f"rediss://fanfare:hunter2@127.0.0.1:{server.answering_port}/0"
        async with workers(f"{where}?ca={server.folder / 'ca.crt'}") as (one, two):
            await crosses(one, two, b"1")
        with pytest.raises(errors.EngineUnavailable, match="certificate"):
            async with workers(where, 1):
                pass


async def test_valkey_serves_and_a_restart_of_it_is_a_gap() -> None:
    with redisserver.running("--appendonly", "yes", "--appendfsync", "always", is_valkey=True) as server:
        with server.client() as client:
            assert client.info("server")["server_name"] == "valkey"
        async with workers(server.url()) as (one, two):
            await crosses(one, two, b"1")
            await streams_and_revisions_cross(one, two)
            [before] = await one.publish("long", b"1", retention=conformance.KEPT)
            replayed = await conformance.replay(two, channel="long", rewind=interface.Rewind(1, 0))
            assert (replayed.position, [entry.body for entry in replayed.entries]) == (before.position, [b"1"])
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
            await healthy(one, two)
            assert set(one.gaps) == set(two.gaps) == {"generation_changed"}
            assert (await conformance.replay(two, channel="long", after=before.position)).reason == "epoch_changed"
            await crosses(one, two, b"2")


# -- Sentinel ----------------------------------------------------------------------------------------------------------


async def test_promoted_replica_is_followed_and_begins_new_generations() -> None:
    """The primary is killed under load. No position is given twice, and nothing that is delivered is torn."""
    with redisserver.watched() as deployment:
        async with workers(deployment.url()) as (one, two):
            [before] = await one.publish("long", b"1", retention=conformance.KEPT)
            publisher = Publisher(one, "kept", 300)
            publishing = asyncio.ensure_future(publisher.run())
            await one.until(lambda: len(publisher.acknowledged) > 50, "events", within=60)
            await asyncio.to_thread(deployment.primary().kill)
            await publishing
            await healthy(one, two)
            await crosses(one, two, b"2")
            assert set(one.gaps) == set(two.gaps) == {"generation_changed"}
            assert (await conformance.replay(two, channel="long", after=before.position)).reason == "epoch_changed"
            given = [(entry.channel, entry.body) for entry in two.entries if entry.channel == "kept"]
            assert len(set(given)) == len(given)


async def follow(worker: Worker, deployment: redisserver.Watched) -> None:
    """Wait until a worker follows the primary that the sentinels name."""
    link = worker.engine._worker.topology.links[None]  # type: ignore[attr-defined]
    await worker.until(
        lambda: link.wire is not None and link.server[1] == deployment.primary().port, "the new primary", within=60
    )
    await healthy(worker)


async def promote(deployment: redisserver.Watched) -> None:
    """Freeze the primary until the sentinels have promoted its replica. Until one demotes it, it may take writes."""
    before = deployment.primary()
    before.signal(signal.SIGSTOP)
    await asyncio.to_thread(waiting.until, lambda: deployment.primary() is not before, 60, "the promotion")
    before.signal(signal.SIGCONT)


async def test_demoted_primary_that_answers_is_left() -> None:
    """It was frozen while the sentinels promoted its replica, and is a replica when it runs again."""
    with redisserver.watched() as deployment:
        async with workers(deployment.url()) as (one, two):
            await crosses(one, two, b"1")
            await promote(deployment)
            for worker in (one, two):
                await follow(worker, deployment)
                assert set(worker.gaps) == {"generation_changed"}
            await crosses(one, two, b"2")


async def test_replaced_primary_that_takes_writes_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """No sentinel can demote it, and it answers every heartbeat."""
    monkeypatch.setattr(redis_link, "SILENCE_S", 600.0)
    unknown = ("--rename-command", "REPLICAOF", "", "--rename-command", "SLAVEOF", "")
    with redisserver.watched(*unknown) as deployment:
        async with workers(deployment.url()) as (one, two):
            await crosses(one, two, b"1")
            await promote(deployment)
            for worker in (one, two):
                await follow(worker, deployment)
                assert set(worker.gaps) == {"generation_changed"}
                assert worker.engine.statistics()["primaries_left"] == 1
            await crosses(one, two, b"2")


async def test_publisher_without_a_worker_follows_the_sentinels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queries, "LOCATED_S", 0.0)
    unknown = ("--rename-command", "REPLICAOF", "", "--rename-command", "SLAVEOF", "")
    with redisserver.watched(*unknown) as deployment:
        publisher = redis_engine.RedisEngine(deployment.url())
        publication = interface.Publication(APP, "news", b"1")
        await asyncio.to_thread(publisher.append_blocking, [publication])
        await promote(deployment)
        primary = deployment.primary().port

        def port() -> int:
            with publisher.queries() as asked:
                found: int = asked._client.connection_pool.connection_kwargs["port"]  # type: ignore[attr-defined]
                return found

        await asyncio.to_thread(waiting.until, lambda: port() == primary, 60, "the new primary")
        await asyncio.to_thread(publisher.append_blocking, [publication])
        await publisher.close()


# -- the cluster -------------------------------------------------------------------------------------------------------


async def test_cluster_carries_everything_and_survives_a_killed_primary_and_a_moved_slot() -> None:
    """One cluster for all steps: it takes seconds to start."""
    with redisserver.cluster() as cluster:
        async with workers(cluster.url()) as (one, two):
            await crosses(one, two, b"1")
            await streams_and_revisions_cross(one, two)
            for number in range(20):
                one.engine.set_subscribers(APP, f"room-{number}", 1)
            await waiting.until_async(lambda: has_channels(two, 20), 60, "the channels of all partitions")

            # Resharding under load: the slot of one channel moves to another primary.
            partition = one.engine.partition(APP, "kept")
            prefix = address.key_prefix("fanfare", partition, redis_engine.PARTITIONS)
            slot = address.slot_of(prefix.partition("{")[2].partition("}")[0])
            source = await asyncio.to_thread(cluster.server_of, slot)
            target = next(each for each in cluster.servers[:3] if each is not source)
            publisher = Publisher(one, "kept", 300)
            publishing = asyncio.ensure_future(publisher.run())
            await one.until(lambda: len(publisher.acknowledged) > 50, "events", within=60)
            await asyncio.to_thread(cluster.move_slot, source, target, slot)
            await publishing
            await healthy(one, two)
            await two.until(lambda: two.bodies("kept")[-1:] == publisher.acknowledged[-1:], "the last one", within=60)
            assert_delivered_or_gap(two, publisher)
            assert set(one.gaps) == {"generation_changed"}
            assert len(one.gaps) == 1, "only the partition that moved"
            await crosses(one, two, b"2")

            # A primary is killed: its replica takes over, and the other partitions notice nothing.
            for worker in (one, two):
                worker.gaps.clear()
            await asyncio.to_thread(target.kill)
            await one.until(lambda: not one.engine.health().ok, "the worker reports it", within=60)
            await one.until(lambda: one.engine.health().ok, "it follows the promoted replica", within=60)
            await healthy(two)
            assert 0 < len(one.gaps) < redis_engine.PARTITIONS
            await crosses(one, two, b"3")


def assert_delivered_or_gap(worker: Worker, publisher: Publisher) -> None:
    """Without a gap everything arrived; after one, what came in its moment may be missing, and nothing is twice."""
    if not worker.gaps:
        assert_delivered(worker, "kept", publisher.acknowledged)
    delivered = worker.bodies("kept")
    assert len(set(delivered)) == len(delivered)


async def has_channels(worker: Worker, count: int) -> bool:
    return len(await worker.channels(APP, "room-")) == count
