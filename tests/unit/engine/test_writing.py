"""Who waits for a publication writes it; what several threads and loops have is written together."""

from __future__ import annotations

import asyncio
import fcntl
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from apps.engine import errors, interface
from apps.engine.local import engine, operations, publishing
from tests.harness import waiting
from tests.unit.engine.worlds import APP, Worker


@pytest.fixture
def publisher(tmp_path: Path) -> Iterator[engine.LocalEngine]:
    """No worker, as in a shell or a task worker."""
    here = engine.LocalEngine(tmp_path / "engine")
    yield here
    asyncio.run(here.close())


def event(body: bytes = b"{}") -> interface.Publication:
    return interface.Publication(APP, "c", body)


def thread(publisher: engine.LocalEngine) -> threading.Thread | None:
    return publisher._writer._thread


def test_a_lone_publisher_writes_without_another_thread(publisher: engine.LocalEngine) -> None:
    assert [publisher.append_blocking([event()])[0].id for _ in range(3)] == [1, 2, 3]
    assert thread(publisher) is None


def test_a_publisher_whose_turn_does_not_come_leaves_it_to_the_thread(
    publisher: engine.LocalEngine, tmp_path: Path
) -> None:
    publisher.append_blocking([event()])
    with (tmp_path / "engine" / "log.lock").open("rb") as held, ThreadPoolExecutor(1) as pool:
        fcntl.flock(held, fcntl.LOCK_EX)
        waits = pool.submit(publisher.append_blocking, [event()], 30)
        waiting.until(lambda: thread(publisher), 30, "the writer's thread")
        fcntl.flock(held, fcntl.LOCK_UN)
        assert waits.result()[0].id == 2
    assert publisher.append_blocking([event()])[0].id == 3


def test_threads_that_publish_at_once_lose_nothing_and_keep_their_order(publisher: engine.LocalEngine) -> None:
    def publish(number: int) -> list[int]:
        return [publisher.append_blocking([event(b"%d" % number)], 30)[0].id for _ in range(50)]

    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(publish, range(8)))
    assert all(mine == sorted(mine) for mine in ids)
    assert sorted(one for mine in ids for one in mine) == list(range(1, 401))
    written = publisher.statistics()
    assert written["operations"] == 400
    assert written["groups"] <= 400


async def test_a_loop_and_threads_write_together(tmp_path: Path) -> None:
    worker = await Worker(engine.LocalEngine(tmp_path / "engine")).open()
    one = await asyncio.gather(
        *(worker.engine.append([event(b"loop")]) for _ in range(50)),
        *(asyncio.to_thread(worker.engine.append_blocking, [event(b"thread")], 30) for _ in range(50)),
    )
    assert sorted(receipt.id for (receipt,) in one) == list(range(1, 101))
    await worker.until(lambda: len(worker.entries) == 100, "all entries")
    await worker.engine.close()


class Interrupting(operations.Operation):
    """A signal's handler that raises while a group is written."""

    def run(self, group: operations.Group) -> None:
        raise KeyboardInterrupt

    def settle(self, error: errors.EngineError | None) -> None:
        assert error is not None


def test_an_interrupted_publisher_lets_the_others_go_on(publisher: engine.LocalEngine, tmp_path: Path) -> None:
    """Its own group is refused, nothing of it is in the log, and nobody waits for its turn to end."""
    publisher.append_blocking([event()])
    beside = publishing.BlockingAppend([event(b"beside")])
    publisher._writer._pending.append(beside)
    with pytest.raises(KeyboardInterrupt):
        publisher._writer.write(Interrupting())
    assert beside.wait(0)
    assert isinstance(beside.error, errors.EngineUnavailable)
    queue = os.open(tmp_path / "engine" / "log.lock", os.O_RDWR)
    fcntl.flock(queue, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(queue)
    assert publisher.append_blocking([event()])[0].id == 2


def test_a_writer_that_is_stopped_has_written_what_was_pending(tmp_path: Path) -> None:
    here = engine.LocalEngine(tmp_path / "engine")
    here.append_blocking([event()])
    late = publishing.BlockingAppend([event(b"late")])
    here._writer.submit(late)
    here._writer.stop(last=False)
    assert late.wait(0)
    assert late.error is None
    with pytest.raises(errors.EngineUnavailable, match="closed"):
        here.append_blocking([event()])
    asyncio.run(here.close())
