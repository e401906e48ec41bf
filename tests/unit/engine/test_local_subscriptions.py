"""A worker reads only the entries of channels with a local subscriber or listener, and misses none of them."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fanfare.engine import interface
from fanfare.engine.local import engine, reader
from tests.unit.engine import workers
from tests.unit.engine.workers import APP

KEPT = interface.Retention(size=10_000, seconds=60)


class Worker(workers.Worker):
    def bodies(self, channel: str) -> list[bytes]:
        """Of events: what tells that the channel is occupied has none."""
        return [one.body for one in self.entries if one.channel == channel and one.kind == interface.Kind.EVENT]


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Worker]:
    local = engine.LocalEngine(tmp_path)
    opened = Worker(local)
    await opened.open(listening=False)
    yield opened
    await local.close()


def reader_of(worker: Worker) -> reader.LogReader:
    assert isinstance(worker.engine, engine.LocalEngine)
    assert worker.engine._worker is not None
    return worker.engine._worker.reader


async def caught_up(worker: Worker, _receipts: list[interface.Receipt]) -> None:
    """Wait until the worker has read the end of the log."""
    log = worker.engine
    assert isinstance(log, engine.LocalEngine)

    def top() -> int:
        with contextlib.closing(sqlite3.connect(log.paths.log)) as connection:
            return int(connection.execute("SELECT MAX(id) FROM log").fetchone()[0])

    end = top()
    await worker.until(lambda: reader_of(worker).position >= end, "the reader to reach the end")


async def test_only_channels_with_local_subscribers_are_delivered(here: Worker) -> None:
    here.engine.set_subscribers(APP, "local", 2)
    await here.publish("elsewhere", b"1")
    await here.publish("local", b"2")
    await here.engine.append([interface.Publication("another", "local", b"3")])
    await caught_up(here, await here.publish("elsewhere", b"4"))
    assert here.bodies("local") == [b"2"]
    assert here.bodies("elsewhere") == []


async def test_listening_delivers_without_counting(here: Worker) -> None:
    here.engine.listen("", "mailbox", True)
    message = interface.Publication("", "mailbox", b"1", interface.Kind.MESSAGE)
    await here.engine.append([message, message._replace(channel="another")])
    await here.until(lambda: here.entries, "the message")
    here.engine.set_subscribers("", "mailbox", 1)
    here.engine.set_subscribers("", "mailbox", 0)
    await here.engine.append([message])
    await here.until(lambda: len([one for one in here.entries if one.kind == message.kind]) == 2, "the message")
    here.engine.listen("", "mailbox", False)
    await caught_up(here, await here.engine.append([message]))
    assert [one.channel for one in here.entries if one.kind == message.kind] == ["mailbox"] * 2
    assert await here.channels("") == {}


async def test_commands_and_users_are_delivered_to_every_worker(here: Worker) -> None:
    await here.engine.append([interface.Publication(APP, "reload", b"1", interface.Kind.CONTROL)])
    await here.join(interface.USERS, "ann", "1.1")
    await here.until(lambda: len(here.entries) == 2, "both")
    assert [entry.kind for entry in here.entries] == [interface.Kind.CONTROL, interface.Kind.MEMBER_ADDED]


async def test_channel_is_not_delivered_after_its_last_subscriber_left(here: Worker) -> None:
    here.engine.set_subscribers(APP, "c", 1)
    await here.publish("c", b"1")
    await here.got("c", b"1")
    here.engine.set_subscribers(APP, "c", 0)
    await caught_up(here, await here.publish("c", b"2"))
    here.engine.set_subscribers(APP, "c", 1)
    await here.publish("c", b"3")
    await here.got("c", b"1", b"3")


async def test_subscriber_misses_nothing_from_its_answer_on(here: Worker) -> None:
    """Subscribers come and go while another thread publishes."""
    local = here.engine
    done = asyncio.Event()

    def publish() -> None:
        for number in range(400):
            local.append_blocking([interface.Publication(APP, "c", b"%d" % number, retention=KEPT)], 60)

    async def publishing() -> None:
        await asyncio.to_thread(publish)
        done.set()

    running = asyncio.create_task(publishing())
    rounds = 0
    while not done.is_set():
        rounds += 1
        local.set_subscribers(APP, "c", 1)
        attached = await here.attach("c", f"1.{rounds}", history=interface.RecoveryRequest())
        assert isinstance(attached, interface.SubscribeResult)
        assert attached.replayed is not None
        assert attached.replayed.position is not None
        start = attached.replayed.position.offset
        await here.publish("c", b"mine", retention=KEPT)
        await here.until(lambda: b"mine" in here.bodies("c"), "an event")
        offsets = [entry.offset for entry in here.entries if entry.offset is not None and entry.offset > start]
        assert offsets == list(range(start + 1, start + 1 + len(offsets)))
        local.set_subscribers(APP, "c", 0)
        here.entries.clear()
    await running


async def test_entries_of_other_channels_are_passed_in_steps(here: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "SCAN_ENTRIES", 3)
    here.engine.set_subscribers(APP, "c", 1)
    await here.engine.append(
        [interface.Publication(APP, f"other-{number}" if number != 40 else "c", b"x") for number in range(100)]
    )
    await caught_up(here, await here.publish("last", b"x"))
    assert here.bodies("c") == [b"x"]


async def test_subscription_behind_entries_of_other_channels_is_answered(
    here: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "SCAN_ENTRIES", 3)
    monkeypatch.setattr(reader, "STEP_ENTRIES", 2)
    here.engine.set_subscribers(APP, "c", 1)
    appended = asyncio.ensure_future(
        here.engine.append([interface.Publication(APP, "c" if number % 5 else "d", b"x") for number in range(50)])
    )
    assert isinstance(await here.attach("c"), interface.SubscribeResult)
    await appended
    await here.until(lambda: len(here.bodies("c")) == 40, "what is local")


async def test_reader_that_starts_again_keeps_its_local_subscriptions(here: Worker) -> None:
    here.engine.set_subscribers(APP, "c", 1)
    await here.publish("c", b"1")
    await here.got("c", b"1")
    reader_of(here).follow(reader_of(here).position)
    await here.publish("elsewhere", b"2")
    await here.publish("c", b"3")
    await here.got("c", b"1", b"3")
    assert here.bodies("elsewhere") == []
