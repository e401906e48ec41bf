"""Pokes: one for each read of the log that they ask for, and none for who is about to read it anyway."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from fanfare.engine.local import engine, pokes, worker
from tests.unit.engine.workers import Worker


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("s")  # a short path


@pytest.fixture
def bell(folder: Path) -> Iterator[pokes.Bell]:
    opened = pokes.Bell(folder, "bell")
    assert opened.open() is not None
    yield opened
    opened.close()


@pytest.fixture
def ringer() -> Iterator[pokes.Ringer]:
    made = pokes.Ringer()
    yield made
    made.close()


def waiting(bell: pokes.Bell) -> int:
    """How many datagrams lie in its queue; they are taken."""
    assert bell._socket is not None
    found = 0
    while True:
        try:
            bell._socket.recv(1)
        except BlockingIOError:
            return found
        found += 1


def test_who_was_poked_is_not_poked_again_before_it_listens(
    folder: Path, bell: pokes.Bell, ringer: pokes.Ringer
) -> None:
    for _ in range(5):
        ringer.ring(folder, None)
    assert waiting(bell) == 1
    bell.listen()
    for _ in range(5):
        ringer.ring(folder, None)
    assert waiting(bell) == 1


def test_who_is_mute_is_not_poked(folder: Path, bell: pokes.Bell, ringer: pokes.Ringer) -> None:
    bell.mute()
    ringer.ring(folder, None)
    assert waiting(bell) == 0
    bell.listen()
    ringer.ring(folder, None)
    assert waiting(bell) == 1


def test_nobody_pokes_itself(folder: Path, bell: pokes.Bell, ringer: pokes.Ringer) -> None:
    ringer.ring(folder, "bell")
    assert waiting(bell) == 0


def test_a_worker_of_a_release_without_the_byte_is_always_poked(folder: Path, ringer: pokes.Ringer) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as old:
        old.setblocking(False)
        old.bind(os.fspath(folder / "old.sock"))
        for _ in range(3):
            ringer.ring(folder, None)
            assert old.recv(1) == b""


def test_one_that_comes_right_after_a_poke_is_poked_too(folder: Path, bell: pokes.Bell, ringer: pokes.Ringer) -> None:
    """Within the same tick of the kernel's clock the folder's time stays as it is."""
    ringer.ring(folder, None)
    other = pokes.Bell(folder, "other")
    assert other.open() is not None

    ringer.ring(folder, None)
    assert waiting(other) == 1
    other.close()


def test_a_bell_leaves_nothing_behind(folder: Path) -> None:
    bell = pokes.Bell(folder, "bell")
    bell.open()
    bell.close()
    assert list(folder.iterdir()) == []


async def test_a_poke_that_was_promised_and_never_sent_costs_a_tick_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer that dies between the byte and the datagram."""
    monkeypatch.setattr(worker, "TICK_S", 0.05)
    here, other = engine.LocalEngine(tmp_path), await Worker(engine.LocalEngine(tmp_path)).open()
    one = await Worker(here).open()
    assert here._worker is not None
    for number in range(3):
        here._worker._pace._bell.mute()
        await other.publish("c", b"%d" % number)
        await one.got("c", *[b"%d" % done for done in range(number + 1)])
    await here.close()
    await other.engine.close()
