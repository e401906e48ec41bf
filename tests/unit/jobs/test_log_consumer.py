"""Log consumers on the local engine: position, kinds, throttled keeping, partitions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fanfare.engine import errors, interface
from fanfare.engine.local import engine as local_engine
from fanfare.jobs import log_consumer
from fanfare.runtime.supervisor import Supervisor
from tests.harness import waiting

KINDS = frozenset({interface.Kind.OCCUPIED, interface.Kind.VACATED})


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[interface.Engine]:
    made = local_engine.LocalEngine(tmp_path / "engine")
    await made.open(lambda entries: None, lambda reason, partition: None)
    yield made
    await made.close()


def consumer(engine: interface.Engine) -> log_consumer.LogConsumer:
    return log_consumer.LogConsumer(engine, "test", KINDS)


async def occupy(engine: interface.Engine, *channels: str) -> None:
    for channel in channels:
        engine.set_subscribers("7", channel, 1)
    await engine.append([interface.Publication("7", "other", b"{}")])


async def channels(reading: log_consumer.LogConsumer, within_s: float = 1.0) -> list[str]:
    return [entry.channel for entry in await reading.next(within_s)]


async def test_only_the_wanted_kinds_are_read_and_others_are_passed(engine: interface.Engine) -> None:
    async with consumer(engine) as reading:
        before = reading.position
        await occupy(engine, "a", "b")
        assert await channels(reading) == ["a", "b"]
        assert await channels(reading, 0.0) == []
        assert reading.position > before + 2


async def test_next_consumer_begins_at_the_kept_position(
    engine: interface.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with consumer(engine) as reading:
        await occupy(engine, "a")
        assert await channels(reading) == ["a"]
        await reading.keep(at_once=True)
        await occupy(engine, "b")
        assert await channels(reading) == ["b"]
        await reading.keep()  # too soon after the other: not written
    async with consumer(engine) as reading:
        assert await channels(reading) == ["b"]
        await reading.drop()
    async with consumer(engine) as reading:
        assert await channels(reading, 0.0) == []


async def test_position_may_be_set_back(engine: interface.Engine) -> None:
    async with consumer(engine) as reading:
        before = reading.position
        await occupy(engine, "a")
        assert await channels(reading) == ["a"]
        reading.position = before
        assert await channels(reading) == ["a"]


async def test_each_partition_has_a_task_that_is_restarted(caplog: pytest.LogCaptureFixture) -> None:
    tasks, begun = Supervisor(), []

    async def consume(partition: int) -> None:
        begun.append(partition)
        if partition == 1 and begun.count(1) == 1:
            raise errors.EngineUnavailable("The log was replaced")
        await asyncio.Event().wait()

    log_consumer.run_partitions(tasks, "readers", 3, consume, (errors.EngineUnavailable,))

    async def restarted() -> bool:
        return sorted(begun) == [0, 1, 1, 2]

    await waiting.until_async(restarted, 5, "the restart of one partition")
    assert [status.name for status in tasks.statuses] == [f"readers, partition {number}" for number in range(3)]
    assert "readers, partition 1 failed: EngineUnavailable: The log was replaced" in caplog.text
    await tasks.stop()
