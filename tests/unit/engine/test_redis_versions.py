"""Entries that a newer release has written to Redis, on a worker that does not read them."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import AsyncIterator, Iterator

import pytest

from fanfare.engine import errors, interface
from fanfare.engine.redis import catch_up, consumer, entries, moving, partition, scripts
from fanfare.engine.redis import engine as redis_engine
from fanfare.engine.redis import worker as redis_worker
from tests.harness import redisserver
from tests.unit.engine import conformance
from tests.unit.engine.workers import APP, Worker

_ENTRY = "struct.pack('>BI4I8I8I8I2', {}, "
_KIND = interface.Kind.CONTROL


@pytest.fixture(scope="module")
def server() -> Iterator[redisserver.Server]:
    with redisserver.running() as server:
        yield server


@pytest.fixture
def url(server: redisserver.Server) -> str:
    return server.url(prefix=f"log-{uuid.uuid4().hex[:12]}")


@pytest.fixture
async def one(url: str) -> AsyncIterator[Worker]:
    worker = await Worker(redis_engine.RedisEngine(url)).open()
    yield worker
    await worker.engine.close()


def publish_as_newer_release(worker: Worker, channel: str, *bodies: bytes, kind: interface.Kind = _KIND) -> None:
    """With this version in the entries; their header begins as in all versions."""
    text = scripts.PUBLISH.text
    assert _ENTRY.format(1) in text
    newer = scripts.Script(text.replace(_ENTRY.format(1), _ENTRY.format(2)))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(scripts, "PUBLISH", newer)
        patched.setattr(scripts, "WRITING", scripts.WRITING | {newer})
        for body in bodies:
            publication = interface.Publication(APP, channel, body, kind=kind, retention=conformance.KEPT)
            worker.engine.append_blocking([publication])


async def test_recovery_with_an_entry_of_another_version_is_not_complete(one: Worker) -> None:
    [first] = await one.publish("kept", b"1", retention=conformance.KEPT)
    publish_as_newer_release(one, "kept", b"2", kind=interface.Kind.EVENT)
    await one.publish("kept", b"3", retention=conformance.KEPT)
    replayed = await conformance.replay(one, after=first.position)
    assert (replayed.reason, replayed.entries, replayed.complete) == ("engine_unavailable", (), True)
    assert first.position is not None
    second = interface.Position(first.position.epoch, 2)
    replayed = await conformance.replay(one, after=second)
    assert (replayed.reason, [entry.body for entry in replayed.entries]) == (None, [b"3"])
    await one.got("kept", b"1", b"3")
    await one.until(lambda: one.engine.statistics().get("entries_unknown") == 1, "the entry is counted")


async def test_repair_passes_entries_of_another_version(
    one: Worker, server: redisserver.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partition, "REPAIR_ENTRIES", 2)
    monkeypatch.setattr(redis_worker, "BEAT_S", 3_600.0)  # it would move the reader's position beyond the entries
    await one.publish("kept", b"before", retention=conformance.KEPT)
    publish_as_newer_release(one, "kept", b"1", b"2", b"3", b"4", b"5")
    repaired = one.engine.statistics()["entries_unknown"]
    with server.client() as client:
        client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
    await one.until(lambda: one.engine.statistics()["entries_unknown"] >= repaired + 5, "the repair")
    await one.until(lambda: one.engine.health().ok, "the worker is healthy")
    await one.publish("kept", b"after", retention=conformance.KEPT)
    await one.got("kept", b"before", b"after")
    assert one.gaps == []


async def test_listener_catches_up_beyond_entries_of_another_version(
    one: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catch_up, "LISTEN_ENTRIES", 2)
    index = one.engine.partition(APP, "late")
    here = one.engine._worker.all[index]  # type: ignore[attr-defined]
    since = here.position
    publish_as_newer_release(one, "late", b"1", b"2", b"3", b"4", b"5", kind=interface.Kind.EVENT)
    await one.publish("late", b"6")
    here.position = since  # as if the server had served the publications before the SSUBSCRIBE
    one.engine.listen(APP, "late", True)
    await one.got("late", b"6")


async def test_consumer_reads_beyond_entries_of_another_version(one: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumer, "READ_ENTRIES", 2)
    index = one.engine.partition(APP, "c")
    reader = await one.engine.consume("outbox", index, frozenset([interface.Kind.EVENT]))
    with contextlib.closing(reader):
        publish_as_newer_release(one, "c", b"1", b"2", b"3", kind=interface.Kind.EVENT)
        await one.publish("c", b"4", b"5", b"6")
        found: list[bytes] = []
        while len(found) < 3:
            found += [entry.body for entry in await reader.next(1, 30)]
        assert found == [b"4", b"5", b"6"]


async def test_move_refuses_entries_of_another_version(one: Worker, url: str) -> None:
    publish_as_newer_release(one, "kept", b"1", kind=interface.Kind.EVENT)
    with contextlib.closing(moving.RedisStore(url, redis_engine.PARTITIONS)) as store:
        [stream] = [each for each in store.streams().values() if each.channel == "kept"]
        with pytest.raises(errors.EngineMisconfigured, match="newer release"):
            list(store.kept([(stream, 0)]))


def test_entry_without_a_length_is_refused() -> None:
    with pytest.raises(ValueError, match="another program has written it"):
        entries.read_all([bytes(40)])
