"""A damaged log is kept for a person, and a new one is begun at once."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from fanfare.engine import errors, interface
from fanfare.engine.local import engine, paths, presence, schema
from tests.harness import waiting
from tests.unit.engine import conformance, damage
from tests.unit.engine.workers import Worker

PAGE_BYTES = 4096

Harm = Callable[[Path], None]


@pytest.fixture
async def hire(tmp_path: Path) -> AsyncIterator[conformance.Hire]:
    hired: list[Worker] = []

    async def one() -> Worker:
        worker = Worker(engine.LocalEngine(tmp_path / "engine"))
        hired.append(await worker.open())
        return worker

    yield one
    for worker in hired:
        await worker.engine.close()


# In another process: a close in this one would drop SQLite's locks.
OVERWRITE = (
    "import sys; file = open(sys.argv[1], 'r+b'); file.seek(int(sys.argv[2])); "
    "file.write(bytes([int(sys.argv[4])]) * int(sys.argv[3]))"
)


def overwrite(log: Path, start: int, end: int | None = None, byte: int = ord("?")) -> None:
    """As a disk does that fails, or a program that runs wild."""
    count = (log.stat().st_size if end is None else end) - start
    subprocess.run([sys.executable, "-S", "-c", OVERWRITE, log, str(start), str(count), str(byte)], check=True)


def spoil_the_header(log: Path) -> None:
    overwrite(log, 0, 100)


def spoil_every_page_but_the_first(log: Path) -> None:
    overwrite(log, PAGE_BYTES)


def empty(log: Path) -> None:
    os.truncate(log, 0)


def checkpoint(log: Path) -> None:
    """What is only in the WAL cannot be spoilt in the log."""
    with contextlib.closing(sqlite3.connect(log)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def set_aside(folder: Path) -> list[Path]:
    return [path for path in folder.glob(f"*{paths.DAMAGED}*") if not path.name.endswith(paths.SIDE_FILES)]


async def publish_again_and_again(worker: Worker, body: bytes) -> interface.Position:
    """As a publisher does that gets a 503."""
    found: list[interface.Position] = []

    async def acknowledged() -> object:
        with contextlib.suppress(errors.EngineUnavailable):
            [receipt] = await worker.publish("kept", body, retention=conformance.KEPT)
            assert receipt.position is not None
            found.append(receipt.position)
        return found

    await waiting.until_async(acknowledged, 10, "an acknowledged publication")
    return found[0]


@pytest.mark.parametrize("harm", [spoil_the_header, spoil_every_page_but_the_first, empty])
async def test_damage_under_running_workers_leads_to_a_new_log(
    tmp_path: Path, hire: conformance.Hire, harm: Harm
) -> None:
    one, two = await hire(), await hire()
    before = None
    for number in range(200):
        [receipt] = await one.publish("kept", b"%d" % number * 100, retention=conformance.KEPT)
        before = receipt.position
    log = tmp_path / "engine" / "log.sqlite3"
    checkpoint(log)
    harm(log)
    after = await publish_again_and_again(one, b"after")
    for worker in (one, two):
        await worker.until(lambda worker=worker: worker.gaps, "the fence")
        await worker.until(lambda worker=worker: worker.engine.health().ok, "health")
    again = await publish_again_and_again(two, b"again")
    await one.until(lambda: b"again" in one.bodies("kept"), "the entry of the other worker")
    assert before is not None
    assert after.epoch == again.epoch != before.epoch
    assert len(set_aside(tmp_path / "engine")) == 1
    assert one.engine.statistics()["set_aside"] + two.engine.statistics()["set_aside"] == 1


async def test_damage_that_a_query_meets_leads_to_a_new_log(tmp_path: Path, hire: conformance.Hire) -> None:
    one = await hire()
    await one.publish("kept", b"x", retention=conformance.KEPT)
    checkpoint(tmp_path / "engine" / "log.sqlite3")
    spoil_every_page_but_the_first(tmp_path / "engine" / "log.sqlite3")
    with pytest.raises(errors.EngineUnavailable):
        await one.members("presence-c")
    await one.until(lambda: set_aside(tmp_path / "engine"), "the damaged log is set aside")

    async def answered() -> bool:
        with contextlib.suppress(errors.EngineUnavailable):
            return await one.members("presence-c") == []
        return False

    await waiting.until_async(answered, 10, "an answer from the new log")


async def test_damage_that_a_subscription_meets_refuses_it(tmp_path: Path, hire: conformance.Hire) -> None:
    """The read fails after the subscription was taken for an answer."""
    one = await hire()
    with contextlib.closing(sqlite3.connect(tmp_path / "engine" / "log.sqlite3")) as connection:
        connection.execute("DROP TABLE cache")
    answer = await one.attach("cache-c", cached=True)
    assert isinstance(answer, interface.Refused), answer
    assert answer.code == "engine_unavailable"
    await one.until(lambda: set_aside(tmp_path / "engine"), "the damaged log is set aside")


async def test_stream_that_was_written_and_cannot_be_read_refuses_its_subscriber(
    hire: conformance.Hire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With damage in the index of the WAL, the reader may see an older state for ever."""
    one = await hire()
    monkeypatch.setattr(presence.OpenStream, "run", lambda operation, transaction: None)
    answer = await one.attach("kept", history=interface.RecoveryRequest())
    assert isinstance(answer, interface.Refused), answer
    await one.until(lambda: one.gaps, "the gap")
    monkeypatch.undo()
    await one.until(lambda: one.engine.health().ok, "health")
    assert isinstance(await one.attach("kept", history=interface.RecoveryRequest()), interface.SubscribeResult)


async def test_log_that_was_damaged_while_no_worker_ran_is_set_aside_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine" / "log.sqlite3").write_bytes(b"no database" * 1_000)
    worker = await Worker(engine.LocalEngine(tmp_path / "engine")).open()
    await worker.publish("news", b"x")
    assert len(set_aside(tmp_path / "engine")) == 1
    await worker.engine.close()


async def test_sound_log_is_not_set_aside(tmp_path: Path, hire: conformance.Hire) -> None:
    one = await hire()
    one.engine._commits.log.suspected = True
    [receipt] = await one.publish("kept", b"x", retention=conformance.KEPT)
    assert receipt.position is not None
    assert set_aside(tmp_path / "engine") == []
    assert one.gaps == []


async def test_after_three_damaged_logs_a_person_must_act(tmp_path: Path, hire: conformance.Hire) -> None:
    one = await hire()
    for number in range(paths.MAX_SET_ASIDE):
        (tmp_path / "engine" / f"log.sqlite3{paths.DAMAGED}{number}").touch()
    checkpoint(tmp_path / "engine" / "log.sqlite3")
    spoil_every_page_but_the_first(tmp_path / "engine" / "log.sqlite3")

    async def told() -> bool:
        with contextlib.suppress(errors.EngineUnavailable):
            await one.publish("kept", b"x", retention=conformance.KEPT)
        return "check the disk" in one.engine.health().reason

    await waiting.until_async(told, 10, "a reason that says what to do")
    for path in set_aside(tmp_path / "engine"):
        path.unlink()
    await one.until(lambda: one.engine.health().ok, "health", within=10)
    await publish_again_and_again(one, b"after")


def test_faults_outside_of_the_file_are_no_damage(tmp_path: Path) -> None:
    where = paths.LogPaths(tmp_path)
    with contextlib.closing(schema.connect(where, create=True)) as connection:
        schema.prepare(connection, where, full_sync=False, high_water=0)
        with contextlib.closing(sqlite3.connect(where.log, isolation_level=None, timeout=0)) as other:
            other.execute("BEGIN IMMEDIATE")
            connection.execute("PRAGMA busy_timeout=0")
            with pytest.raises(sqlite3.OperationalError) as locked:
                connection.execute("BEGIN IMMEDIATE")
        assert not schema.may_be_damage(locked.value)
        with pytest.raises(sqlite3.OperationalError) as no_table:
            connection.execute("SELECT * FROM nothing")
        assert schema.may_be_damage(no_table.value), "the schema's text may be damaged"
        assert schema.is_sound(where)


def test_damage_at_random_places_ends_in_a_served_or_a_new_log(tmp_path: Path) -> None:
    """`python -m tests.unit.engine.damage` tries more places."""
    outcomes, failures = damage.run(60, 3, tmp_path)
    assert failures == []
    assert outcomes["served"] > 0
    assert outcomes["new log"] > 0


def test_damage_at_random_places_of_open_files_ends_in_a_served_or_a_new_log(tmp_path: Path) -> None:
    """`python -m tests.unit.engine.damage --live` tries more places."""
    outcomes, failures = damage.run(10, 1, tmp_path, is_live=True)
    assert failures == []
    assert sum(outcomes.values()) == 10


@pytest.mark.parametrize(
    ("start", "end", "byte"),
    [(438, 4_534, 0), (96, 136, 0), (30_147, 32_768, 0xFF)],
    ids=["the index of pages", "the marks of readers", "the hash table"],
)
async def test_damaged_index_of_the_wal_under_a_running_worker_is_noticed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, start: int, end: int, byte: int
) -> None:
    """The reader then sees an older state than it has delivered, while the writer goes on with pages in memory. With
    damage in the hash table every write fails, and a check, which only reads, finds no fault."""

    def spoil_the_index(_: random.Random, folder: Path, *, is_live: bool) -> str:
        overwrite(folder / "log.sqlite3-shm", start, end, byte=byte)
        return f"bytes {start} to {end} of the shared memory"

    made = damage.template(tmp_path)
    await damage.known_epochs(Path(shutil.copytree(made, tmp_path / "inspected")))
    monkeypatch.setattr(damage, "damaged", spoil_the_index)
    assert await damage.outcome(made, random.Random(1)) in ("served", "new log")
    starts = [record for record in caplog.records if "starting again" in record.getMessage()]
    assert len(starts) <= 2, "one line for the fault, and not one for each try"


async def test_schema_text_that_is_no_utf_8_is_damage(tmp_path: Path) -> None:
    """Python cannot decode the message in which SQLite quotes it."""
    worker = await Worker(engine.LocalEngine(tmp_path / "engine")).open()
    await worker.engine.close()
    log = tmp_path / "engine" / "log.sqlite3"
    content = log.read_bytes()
    log.write_bytes(content.replace(b"CREATE TABLE log (", b"CREATE T\xffBLE log ("))
    worker = await Worker(engine.LocalEngine(tmp_path / "engine")).open()
    await worker.publish("news", b"x")
    await worker.got("news", b"x")
    assert len(set_aside(tmp_path / "engine")) == 1
    await worker.engine.close()


async def test_row_with_text_that_is_no_utf_8_is_damage(tmp_path: Path) -> None:
    worker = await Worker(engine.LocalEngine(tmp_path / "engine")).open()
    await worker.publish("a-long-channel-name", b"x", retention=conformance.KEPT)
    await worker.engine.close()
    log = tmp_path / "engine" / "log.sqlite3"
    log.write_bytes(log.read_bytes().replace(b"a-long-channel-name", b"a-long-\xff\xffannel-name"))
    where = paths.LogPaths(tmp_path / "engine")
    assert not schema.is_sound(where)


async def test_log_that_lost_commits_gets_new_epochs(tmp_path: Path) -> None:
    """A WAL that is damaged ends where the damage begins: SQLite takes the rest for a crash."""
    process = [sys.executable, "-c", damage.WRITER]
    root = Path(__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root / "apps"), str(root)])}
    subprocess.run([*process, tmp_path / "engine", "0"], check=True, env=environment)
    with contextlib.closing(sqlite3.connect(f"file:{tmp_path}/engine/log.sqlite3?mode=ro", uri=True)) as connection:
        before = dict(connection.execute("SELECT channel, epoch FROM streams").fetchall())
    wal = tmp_path / "engine" / "log.sqlite3-wal"
    os.truncate(wal, wal.stat().st_size // 2)
    worker = await Worker(engine.LocalEngine(tmp_path / "engine")).open()
    [receipt] = await worker.publish("kept-1", b"x", retention=conformance.KEPT)
    assert receipt.position is not None
    assert receipt.position.epoch != before["kept-1"]
    assert set_aside(tmp_path / "engine") == [], "what is left of it is sound"
    await worker.engine.close()
