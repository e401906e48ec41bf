"""Delivery of events whose publishing process is killed around its commit, with and without an outbox.

Real processes kill themselves with SIGKILL at the tested moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness import calls, deployments, postgresql, servers, sockets, waiting

Start = Callable[..., servers.Server]

RELAYED_S = 30.0  # the relay polls every 5 s, and a poll can take long on a loaded machine

PRELUDE = """
import os, signal
from django.contrib.auth.models import Group
from django.db import connection, transaction
from fanfare import publish

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def dying_at(statement):
    def wrapper(execute, sql, *rest):
        if sql.startswith(statement):
            die()
        return execute(sql, *rest)
    return connection.execute_wrapper(wrapper)

"""

# NAME: the channel; USED: whether the outbox is used.
COMMITTED = """
with transaction.atomic():
    publish(NAME, "first", 1, outbox=USED)
    publish(NAME, "second", 2, outbox=USED)
"""
ROLLED_BACK = """
with transaction.atomic():
    publish(NAME, "undone", 1, outbox=USED)
    transaction.set_rollback(True)
"""
KILLED_BEFORE_THE_COMMIT = """
with transaction.atomic():
    publish(NAME, "undone", 1, outbox=USED)
    die()
"""
KILLED_AFTER_THE_COMMIT = """
with transaction.atomic():
    transaction.on_commit(die)  # called first
    publish(NAME, "first", 1, outbox=USED)
    publish(NAME, "second", 2, outbox=USED)
"""
KILLED_AFTER_SENDING = """
with dying_at("DELETE"), transaction.atomic():
    publish(NAME, "first", 1, outbox=USED)
    publish(NAME, "second", 2, outbox=USED)
"""


def run(deployment: deployments.Deployment, code: str, channel: str, *, outbox: bool) -> None:
    """Run `code` in a process, which must exit as the code says."""
    text = f"{PRELUDE}NAME, USED = {channel!r}, {outbox}\n{code}"
    if "die" not in code and "dying_at" not in code:
        deployment.shell(text)
        return
    with pytest.raises(deployments.CommandFailed) as caught:
        deployment.shell(text)
    assert caught.value.code == -signal.SIGKILL


Connect = Callable[[], Any]  # opens a connection to Django's database without Django


def sqlite(deployment: deployments.Deployment) -> Connect:
    return lambda: sqlite3.connect(deployment.folder / "db.sqlite3", timeout=10)


def query(connect: Connect, sql: str) -> list[tuple[Any, ...]]:
    with contextlib.closing(connect()) as connection:
        rows: list[tuple[Any, ...]] = connection.execute(sql).fetchall()
        return rows


async def outbox_is_empty(connect: Connect) -> None:
    def look() -> bool:
        return query(connect, "SELECT count(*) FROM fanfare_outboxevent") == [(0,)]

    await asyncio.to_thread(waiting.until, look, RELAYED_S, "the outbox is empty")


async def events(server: servers.Server, socket: sockets.Socket, channel: str, connect: Connect) -> list[str]:
    """The events received on the channel, after the outbox is empty."""
    await outbox_is_empty(connect)
    await asyncio.to_thread(calls.publish, server, channel, "end", "")
    found = []
    while (frame := await socket.receive()).event != "end":
        found.append(frame.event)
    return found


@contextlib.asynccontextmanager
async def subscribed(server: servers.Server, channel: str) -> AsyncIterator[sockets.Socket]:
    async with sockets.connect(server) as socket:
        await socket.subscribe(channel)
        yield socket


async def happens(
    server: servers.Server, code: str, channel: str, *, outbox: bool, connect: Connect | None = None
) -> list[str]:
    async with subscribed(server, channel) as socket:
        await asyncio.to_thread(run, server.deployment, code, channel, outbox=outbox)
        return await events(server, socket, channel, connect or sqlite(server.deployment))


# -- with an outbox ----------------------------------------------------------------------------------------------------


async def test_kill_right_after_the_commit_delivers_exactly_once(
    server: servers.Server, name: Callable[[str], str]
) -> None:
    assert await happens(server, KILLED_AFTER_THE_COMMIT, name("outbox"), outbox=True) == ["first", "second"]


WITH_AN_OUTBOX = pytest.mark.parametrize(
    ("code", "expected"),
    [
        pytest.param(COMMITTED, ["first", "second"], id="committed"),
        pytest.param(ROLLED_BACK, [], id="rolled back"),
        pytest.param(KILLED_BEFORE_THE_COMMIT, [], id="killed before the commit"),
        pytest.param(KILLED_AFTER_THE_COMMIT, ["first", "second"], id="killed after the commit"),
        pytest.param(KILLED_AFTER_SENDING, ["first", "second"], id="killed after sending"),
    ],
)


@WITH_AN_OUTBOX
async def test_outbox_delivers_committed_events_exactly_once(
    four_workers: servers.Server, name: Callable[[str], str], code: str, expected: list[str]
) -> None:
    assert await happens(four_workers, code, name("outbox"), outbox=True) == expected


@pytest.fixture(scope="module")
def on_postgresql(fleet: servers.Fleet) -> Iterator[tuple[servers.Server, Connect]]:
    with postgresql.running() as cluster:
        cluster.create("outbox")
        deployment = fleet.deployment(DATABASE_URL=cluster.url("outbox"))
        deployment.manage("migrate", "--verbosity", "0")
        deployment.application = deployment.create_application("Outbox")
        server = fleet.start("uvicorn", deployment)
        yield server, lambda: cluster.connect("outbox")
        server.stop()


@WITH_AN_OUTBOX
async def test_outbox_in_postgresql_delivers_committed_events_exactly_once(
    on_postgresql: tuple[servers.Server, Connect], name: Callable[[str], str], code: str, expected: list[str]
) -> None:
    server, connect = on_postgresql
    assert await happens(server, code, name("outbox"), outbox=True, connect=connect) == expected


async def test_events_in_the_outbox_are_sent_when_a_worker_starts(
    fleet: servers.Fleet, start: Start, name: Callable[[str], str]
) -> None:
    deployment = fleet.deployment()
    deployment.application = deployment.create_application("Kept", "--history", "kept-*=100,600")
    channel = name("kept")
    code = KILLED_AFTER_THE_COMMIT.replace("outbox=USED", f"outbox=USED, app={deployment.application.id}")
    await asyncio.to_thread(run, deployment, code, channel, outbox=True)
    server = await asyncio.to_thread(start, "gunicorn", deployment)
    await outbox_is_empty(sqlite(deployment))
    with calls.Caller(server) as caller:
        kept = caller.signed("GET", f"channels/{channel}/history", query={"direction": "forwards"}).body["items"]
    assert [(item["offset"], item["data"]) for item in kept] == [(1, "1"), (2, "2")]


# -- without -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        pytest.param(COMMITTED, ["first", "second"], id="committed"),
        pytest.param(ROLLED_BACK, [], id="rolled back"),
        pytest.param(KILLED_BEFORE_THE_COMMIT, [], id="killed before the commit"),
        pytest.param(KILLED_AFTER_THE_COMMIT, [], id="killed after the commit: lost, as documented"),
    ],
)
async def test_events_without_an_outbox_are_delivered_at_most_once(
    four_workers: servers.Server, name: Callable[[str], str], code: str, expected: list[str]
) -> None:
    assert await happens(four_workers, code, name("plain"), outbox=False) == expected


# -- at any moment -----------------------------------------------------------------------------------------------------

PROCESSES = 3
ROUNDS = 3
SAVED = 25  # rows before a process is killed, at a random point of its work

SAVING = """
import itertools
for number in itertools.count():
    with transaction.atomic():
        Group.objects.create(name=f"{NAME}/{TAG}/{number}")
        publish(NAME, "saved", f"{TAG}/{number}")
"""


def saved(deployment: deployments.Deployment, start: str) -> list[str]:
    found = query(sqlite(deployment), f"SELECT name FROM auth_group WHERE name LIKE '{start}/%' ORDER BY id")
    return [name.partition("/")[2] for (name,) in found]


async def test_processes_killed_at_random_moments_neither_lose_nor_repeat_events(
    four_workers: servers.Server, name: Callable[[str], str], tmp_path: Path
) -> None:
    deployment, channel = four_workers.deployment, name("saved")
    tags = [f"{process}-{round_}" for round_ in range(ROUNDS) for process in range(PROCESSES)]
    async with subscribed(four_workers, channel) as socket:
        for first in range(0, len(tags), PROCESSES):
            with contextlib.ExitStack() as stack:
                running = {
                    tag: stack.enter_context(saving(deployment, channel, tag, tmp_path))
                    for tag in tags[first : first + PROCESSES]
                }
                for tag, process in running.items():

                    def enough(tag: str = tag, process: subprocess.Popen[bytes] = process) -> bool:
                        assert process.poll() is None, (tmp_path / f"{tag}.log").read_text()
                        return len(saved(deployment, f"{channel}/{tag}")) >= SAVED

                    await asyncio.to_thread(waiting.until, enough, 60, "the process has saved its rows")
                    os.kill(process.pid, signal.SIGKILL)
        await outbox_is_empty(sqlite(deployment))
        await asyncio.to_thread(calls.publish, four_workers, channel, "end", "")
        received = []
        while (frame := await socket.receive()).event != "end":
            received.append(str(frame.data))
    committed = saved(deployment, channel)
    assert len(committed) >= PROCESSES * ROUNDS * SAVED
    assert sorted(received) == sorted(committed)
    for tag in tags:
        own = [text for text in received if text.startswith(f"{tag}/")]
        assert own == [f"{tag}/{number}" for number in range(len(own))], "the events of each process keep their order"


@contextlib.contextmanager
def saving(
    deployment: deployments.Deployment, channel: str, tag: str, folder: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that saves and publishes until it is killed, with FANFARE_OUTBOX on."""
    code = f"{PRELUDE}NAME, TAG = {channel!r}, {tag!r}\n{SAVING}"
    with (folder / f"{tag}.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "manage.py", "shell", "--no-imports", "-c", code],
            cwd=deployments.REPOSITORY,
            env=deployment.environment(FANFARE_OUTBOX="on"),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
