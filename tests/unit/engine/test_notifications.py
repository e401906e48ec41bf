"""Notifications: one for each read of the log that they ask for, and none for a worker that is about to read."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from fanfare.engine.local import engine, worker
from fanfare.engine.local.notifications import Listener, Notifier
from tests.unit.engine.workers import Worker


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("s")  # a short path


@pytest.fixture
def listener(folder: Path) -> Iterator[Listener]:
    opened = Listener(folder, "one")
    assert opened.open() is not None
    yield opened
    opened.close()


@pytest.fixture
def notifier() -> Iterator[Notifier]:
    made = Notifier()
    yield made
    made.close()


def received(listener: Listener) -> int:
    """How many datagrams lie in its queue; they are taken."""
    assert listener._socket is not None
    found = 0
    while True:
        try:
            listener._socket.recv(1)
        except BlockingIOError:
            return found
        found += 1


def test_notified_worker_is_notified_again_only_after_its_next_read(
    folder: Path, listener: Listener, notifier: Notifier
) -> None:
    for _ in range(5):
        notifier.notify(folder, None)
    assert received(listener) == 1
    listener.expect()
    for _ in range(5):
        notifier.notify(folder, None)
    assert received(listener) == 1


def test_muted_worker_is_not_notified(folder: Path, listener: Listener, notifier: Notifier) -> None:
    listener.mute()
    notifier.notify(folder, None)
    assert received(listener) == 0
    listener.expect()
    notifier.notify(folder, None)
    assert received(listener) == 1


def test_writer_does_not_notify_its_own_worker(folder: Path, listener: Listener, notifier: Notifier) -> None:
    notifier.notify(folder, "one")
    assert received(listener) == 0


def test_worker_without_the_byte_is_always_notified(folder: Path, notifier: Notifier) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as old:
        old.setblocking(False)
        old.bind(os.fspath(folder / "old.sock"))
        for _ in range(3):
            notifier.notify(folder, None)
            assert old.recv(1) == b""


def test_worker_that_starts_right_after_a_notification_is_notified(
    folder: Path, listener: Listener, notifier: Notifier
) -> None:
    """Within the same tick of the kernel's clock the folder's time stays as it is."""
    notifier.notify(folder, None)
    other = Listener(folder, "other")
    assert other.open() is not None

    notifier.notify(folder, None)
    assert received(other) == 1
    other.close()


def test_listener_removes_its_files(folder: Path) -> None:
    listener = Listener(folder, "one")
    listener.open()
    listener.close()
    assert list(folder.iterdir()) == []


async def test_notification_that_was_marked_and_not_sent_costs_a_tick_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer died between the byte and the datagram."""
    monkeypatch.setattr(worker, "TICK_S", 0.05)
    here, other = engine.LocalEngine(tmp_path), await Worker(engine.LocalEngine(tmp_path)).open()
    one = await Worker(here).open()
    assert here._worker is not None
    for number in range(3):
        here._worker.scheduler._listener.mute()
        await other.publish("c", b"%d" % number)
        await one.got("c", *[b"%d" % done for done in range(number + 1)])
    await here.close()
    await other.engine.close()


def test_notifier_survives_the_open_file_limit(folder: Path, listener: Listener) -> None:
    """The socket is made at the first notification, when the process may have no descriptor left."""
    notifier = Notifier()
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        notifier.notify(folder, None)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert notifier.failures == 1
    assert received(listener) == 0
    notifier.notify(folder, None)
    assert received(listener) == 1
    notifier.close()
