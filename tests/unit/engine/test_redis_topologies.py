"""The Redis engine with TLS, Sentinel and a cluster, on real servers."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator

import pytest

from fanfare.engine import errors, interface
from fanfare.engine.redis import address
from fanfare.engine.redis import engine as redis_engine
from tests.harness import redisserver, waiting
from tests.unit.engine import conformance
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
    await two.until(lambda: two.bodies("news")[-2:] == [body, body + b" blocking"], "both events", within=10)
    assert await one.join("presence-c", body.decode(), f"{body.decode()}.1") == [
        member.user_id for member in await two.members("presence-c")
    ]


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


# -- Sentinel ----------------------------------------------------------------------------------------------------------


async def test_promoted_replica_is_followed_and_begins_new_generations() -> None:
    """The primary is killed under load. No position is given twice, and nothing that is delivered is torn."""
    with redisserver.watched() as deployment:
        async with workers(deployment.url()) as (one, two):
            [before] = await one.publish("long", b"1", retention=conformance.KEPT)
            publisher = Publisher(one, "kept", 300)
            publishing = asyncio.ensure_future(publisher.run())
            await one.until(lambda: len(publisher.acknowledged) > 50, "events", within=20)
            await asyncio.to_thread(deployment.primary().kill)
            await publishing
            await healthy(one, two)
            await crosses(one, two, b"2")
            assert set(one.gaps) == set(two.gaps) == {"generation_changed"}
            assert (await conformance.replay(two, channel="long", after=before.position)).reason == "epoch_changed"
            given = [(entry.channel, entry.body) for entry in two.entries if entry.channel == "kept"]
            assert len(set(given)) == len(given)


async def test_demoted_primary_that_answers_is_left() -> None:
    """It was frozen while the sentinels promoted its replica, and is a replica when it runs again."""
    with redisserver.watched() as deployment:
        async with workers(deployment.url()) as (one, two):
            await crosses(one, two, b"1")
            before = deployment.primary()
            before.signal(signal.SIGSTOP)
            await asyncio.to_thread(waiting.until, lambda: deployment.primary() is not before, 30, "the promotion")
            before.signal(signal.SIGCONT)
            # Until a sentinel demotes it, it may still take writes.
            await one.until(lambda: set(one.gaps) == {"generation_changed"}, "the new primary", within=30)
            await healthy(one, two)
            await crosses(one, two, b"2")
            links = one.engine._worker._links  # type: ignore[attr-defined]
            assert links[None].server[1] == deployment.primary().port


# -- the cluster -------------------------------------------------------------------------------------------------------


async def test_cluster_carries_everything_and_survives_a_killed_primary_and_a_moved_slot() -> None:
    """One cluster for all steps: it takes seconds to start."""
    with redisserver.cluster() as cluster:
        async with workers(cluster.url()) as (one, two):
            await crosses(one, two, b"1")
            for number in range(20):
                one.engine.set_subscribers(APP, f"room-{number}", 1)
            await waiting.until_async(lambda: has_channels(two, 20), 10, "the channels of all partitions")

            # Resharding under load: the slot of one channel moves to another primary.
            partition = one.engine.partition(APP, "kept")
            prefix = address.key_prefix("fanfare", partition, redis_engine.PARTITIONS)
            slot = address.slot_of(prefix.partition("{")[2].partition("}")[0])
            source = await asyncio.to_thread(cluster.server_of, slot)
            target = next(each for each in cluster.servers[:3] if each is not source)
            publisher = Publisher(one, "kept", 300)
            publishing = asyncio.ensure_future(publisher.run())
            await one.until(lambda: len(publisher.acknowledged) > 50, "events", within=20)
            await asyncio.to_thread(move_slot, cluster, source, target, slot)
            await publishing
            await healthy(one, two)
            await two.until(lambda: two.bodies("kept")[-1:] == publisher.acknowledged[-1:], "the last one", within=10)
            assert_delivered_or_gap(two, publisher)
            assert set(one.gaps) == {"generation_changed"}
            assert len(one.gaps) == 1, "only the partition that moved"
            await crosses(one, two, b"2")

            # A primary is killed: its replica takes over, and the other partitions notice nothing.
            for worker in (one, two):
                worker.gaps.clear()
            await asyncio.to_thread(target.kill)
            await one.until(lambda: not one.engine.health().ok, "the worker reports it", within=10)
            await one.until(lambda: one.engine.health().ok, "it follows the promoted replica", within=40)
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


def move_slot(cluster: redisserver.Cluster, source: redisserver.Server, target: redisserver.Server, slot: int) -> None:
    """As `redis-cli --cluster reshard` does for one slot."""
    ids = cluster.id_of(source), cluster.id_of(target)
    with source.client() as giving, target.client() as taking:
        taking.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", ids[0])
        giving.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", ids[1])
        while keys := giving.execute_command("CLUSTER GETKEYSINSLOT", slot, 10):
            giving.execute_command("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
        for client in (taking, giving):
            client.execute_command("CLUSTER SETSLOT", slot, "NODE", ids[1])
