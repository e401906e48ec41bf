"""The log is bounded in bytes, gives space back after a burst, and works on a disk that is full."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from fanfare.engine import errors, interface
from fanfare.engine.local import disk_space, engine, worker
from tests.harness import parts, waiting
from tests.unit.engine.workers import APP, Worker

MB = 1024 * 1024
LARGE = b"x" * (MB // 2)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MB in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m,mode=0700", "tmpfs", os.fspath(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        parts.absent("this user may not mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@contextlib.asynccontextmanager
async def opened(folder: Path, **options: object) -> AsyncIterator[Worker]:
    opened = await Worker(engine.LocalEngine(folder / "engine", **options)).open()  # type: ignore[arg-type]
    try:
        yield opened
    finally:
        await opened.engine.close()


def empty_wal(log: Path) -> None:
    """Copy the WAL into the log and cut it to nothing."""

    def is_done() -> bool:
        with contextlib.closing(sqlite3.connect(log)) as connection:
            [(busy, *_)] = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return not busy

    waiting.until(is_done, 5, "the WAL is empty")


async def until_refused(one: Worker, **more: object) -> errors.EngineUnavailable:
    for _ in range(2_000):
        try:
            await one.publish("news", LARGE, **more)
        except errors.EngineUnavailable as refused:
            return refused
    raise AssertionError("the log took 1 GB")


async def until_acknowledged(one: Worker, within_s: float = 20.0) -> float:
    """The seconds that it took."""
    began = time.monotonic()
    while True:
        try:
            await one.publish("news", b"again")
        except errors.EngineUnavailable as refused:
            assert time.monotonic() - began < within_s, refused
            await asyncio.sleep(0.05)
        else:
            return time.monotonic() - began


def fill(folder: Path) -> Path:
    """As another program does: until not a byte is left."""
    filler = folder / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        for size in (65_536, 4_096, 1):
            with contextlib.suppress(OSError):
                while file.write(b"\0" * size) == size:
                    continue
    return filler


async def test_log_that_filled_its_small_disk_is_trimmed_and_takes_publications_again(small_disk: Path) -> None:
    async with opened(small_disk) as one, opened(small_disk) as two:
        refused = await until_refused(one)
        assert isinstance(refused, errors.LogFull)
        assert "3.1 MB are kept free" in str(refused)
        assert not one.engine.health().ok
        # Django's database on the same disk can still be written.
        (small_disk / "other").write_bytes(b"x" * MB)
        await until_acknowledged(one)
        await until_acknowledged(two)
        await one.until(lambda: one.engine.health().ok, "health", within=10)
        assert one.gaps == two.gaps == []
    async with opened(small_disk) as one:
        await one.publish("news", b"after a restart")


async def test_log_on_a_disk_that_another_program_filled_recovers(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(small_disk) as one:
        await one.publish("news", b"1")
        filler = fill(small_disk)
        refused = await until_refused(one)
        assert "cannot be written" in str(refused)
        assert not one.engine.health().ok
        log = one.engine._commits.log
        await one.until(lambda: log.space.free < MB, "the measurement of the full disk")
        assert log.space.limit < 0, "nothing of the log fits"
        assert f"free space on the disk of {log.paths.folder}" in caplog.text
        filler.unlink()
        await until_acknowledged(one)
        await one.until(lambda: one.engine.health().ok, "health", within=10)


async def test_full_log_is_trimmed_on_a_full_disk_with_its_reserve(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The trim needs space before it frees any: the reserve gives it. It is created again once there is room."""
    async with opened(small_disk) as one:
        one.engine._commits.log.reserve.restore()
        reserve = small_disk / "engine" / "log.reserve"
        assert reserve.stat().st_blocks * 512 >= disk_space.RESERVE_BYTES
        for _ in range(12):
            await one.publish("news", LARGE)
        with_wal = one.engine.statistics()["log_used_bytes"]
        empty_wal(small_disk / "engine" / "log.sqlite3")  # a trim could reuse the space of the WAL

        def used() -> float:
            return one.engine.statistics()["log_used_bytes"]

        await one.until(lambda: used() < with_wal, "a measurement without the WAL", within=20)
        fill(small_disk)
        before = used()
        await one.until(lambda: used() < before - 3 * MB, "the trim on the full disk", within=20)
        assert f"{reserve} was deleted so that the log can be trimmed" in caplog.text


async def test_worker_starts_on_a_full_disk(small_disk: Path) -> None:
    async with opened(small_disk) as one:
        await one.publish("kept", b"1", retention=interface.Retention(100, 600))
    (small_disk / "engine" / "log.reserve").write_bytes(bytes(disk_space.RESERVE_BYTES))
    filler = fill(small_disk)
    async with opened(small_disk) as one:
        assert [entry.body for entry in (await one.read("kept", 0, 10))[0]] == [b"1"]
        assert await one.join("presence-c", "ann", "1.1") == ["ann"]
        filler.unlink()
        await until_acknowledged(one)


async def test_log_refuses_publications_above_its_limit_and_names_it(tmp_path: Path) -> None:
    async with opened(tmp_path, log_max_bytes=16 * MB) as one:
        refused = await until_refused(one)
        assert isinstance(refused, errors.LogFull)
        assert "FANFARE_LOG_MAX_BYTES allows 16.8 MB" in str(refused)
        assert "FANFARE_LOG_MAX_BYTES" in one.engine.health().reason
        assert await one.join("presence-c", "ann", "1.1") == ["ann"], "subscriptions go on"
        failures: list[str] = []
        one.engine.post(interface.Publication(APP, "news", b"posted"), failures.append)
        await one.until(lambda: failures, "the refusal of a posted event")
        await until_acknowledged(one)
        assert one.engine.paths.size() < 40 * MB


async def test_histories_lose_their_oldest_entries_where_the_log_is_short_of_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "SHORT_LOG_SECONDS", 0.3)
    monkeypatch.setattr(worker, "TRIM_S", 0.2)
    kept = interface.Retention(100_000, 600)
    async with opened(tmp_path, log_max_bytes=16 * MB, log_seconds=0.3) as one:
        [first] = await one.publish("kept", b"oldest", retention=kept)
        await until_refused(one, retention=kept)
        await until_acknowledged(one)
        [newest] = await one.publish("kept", b"newest", retention=kept)
        assert one.engine.statistics()["evicted"] > 0
        answers: list[interface.SubscribeResult | interface.Refused] = []
        history = interface.RecoveryRequest(after=interface.Position(first.position.epoch, 0))  # type: ignore[union-attr]
        one.engine.attach(interface.SubscribeRequest(APP, "kept", history=history), answers.append)
        await one.until(lambda: answers, "an answer")
        assert isinstance(answers[0], interface.SubscribeResult)
        assert answers[0].replayed is not None
        assert answers[0].replayed.reason == "position_expired"
        entries, top = await one.read("kept", 0, 10)
        assert [entry.body for entry in entries] == [b"newest"]
        assert top == newest.position


async def test_file_shrinks_after_a_burst(tmp_path: Path) -> None:
    async with opened(tmp_path, log_seconds=0.5) as one:
        for _ in range(120):
            await one.publish("news", LARGE)
        assert one.engine.paths.size() > 50 * MB
        log = tmp_path / "engine" / "log.sqlite3"

        def is_small() -> bool:
            return log.stat().st_size < 20 * MB

        begun = time.monotonic()
        while not is_small():
            assert time.monotonic() - begun < 40, log.stat().st_size
            await one.publish("news", b"x" * 10_000)  # commits go on meanwhile, and checkpoints come with them
            await asyncio.sleep(0.02)
