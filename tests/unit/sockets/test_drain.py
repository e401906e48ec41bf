"""The closes of a stopping worker: when, in what order, and with what codes."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
import os
import socket
import types
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from fanfare.runtime.supervisor import Supervisor
from fanfare.sockets import drain
from tests.harness import servers, waiting

PATIENCE_S = 10.0


class Clients:
    """`count` connections, and how each was closed: (loop time, returns)."""

    def __init__(self, count: int) -> None:
        self.closed: list[tuple[float, bool]] = []
        self.each = [_Client(self) for _ in range(count)]

    async def are_closed(self) -> bool:
        return len(self.closed) == len(self.each)


def watch(
    drained: drain.Drain, *, timeout_s: float | None = None, reloads: bool = False, **siblings: Any
) -> types.SimpleNamespace:
    """A server of 25 workers, as lifespan describes it. Returns uvicorn's Config."""
    config = types.SimpleNamespace(timeout_graceful_shutdown=timeout_s, should_reload=reloads, is_ssl=False)
    drained.watch(config, drain.Siblings(**{"workers": 25, **siblings}))
    return config


class _Client:
    def __init__(self, of: Clients) -> None:
        self.of = of

    def restart(self, *, returns: bool) -> None:
        self.of.closed.append((asyncio.get_running_loop().time(), returns))


Make = Callable[..., drain.Drain]


@pytest.fixture
async def make(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Make]:
    monkeypatch.setattr(drain, "SIBLINGS_S", 0.01)
    counts: collections.Counter[str] = collections.Counter()
    tasks = Supervisor(logging.getLogger(__name__))

    def count(name: str, n: int) -> None:
        counts[name] += n

    def make(seconds: float = 0.5, has_others: Callable[[], bool] = lambda: False) -> drain.Drain:
        made = drain.Drain(tasks, seconds=seconds, count=count, has_others=has_others)
        watch(made)
        return made

    yield make
    await tasks.stop()


@contextlib.asynccontextmanager
async def successor(listener: socket.socket, delay_s: float = 0.0) -> AsyncIterator[None]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        writer.close()

    await asyncio.sleep(delay_s)
    server = await asyncio.start_server(answer, sock=listener)
    async with server:
        yield


@pytest.fixture
def listener() -> socket.socket:
    return socket.create_server((servers.HOST, 0))


def stop(drained: drain.Drain, clients: Clients, address: object) -> None:
    for client in clients.each:
        drained.add(client, address)


async def test_closes_are_spread_where_another_process_answers(make: Make, listener: socket.socket) -> None:
    clients = Clients(200)
    async with successor(listener):
        stop(make(), clients, listener.getsockname())
        await waiting.until_async(clients.are_closed, PATIENCE_S, "all are closed")
    times = [at for at, _ in clients.closed]
    assert all(returns for _, returns in clients.closed)
    assert times[-1] - times[0] >= 0.3
    assert sum(at <= times[0] + 0.1 for at in times) < 150


@pytest.mark.parametrize("alone", [True, False])
async def test_worker_that_stops_alone_closes_its_share_in_its_share_of_the_time(
    make: Make, listener: socket.socket, caplog: pytest.LogCaptureFixture, *, alone: bool
) -> None:
    drained = make()
    watch(drained, workers=5, stop_alone=lambda: alone)
    clients = Clients(drain.WHOLE // 5)
    with caplog.at_level(logging.INFO, drain.__name__):
        async with successor(listener):
            stop(drained, clients, listener.getsockname())
            await waiting.until_async(clients.are_closed, PATIENCE_S, "all are closed")
    assert f"Draining 1000 connections within {0.1 if alone else 0.5} s." in caplog.messages


async def test_clients_may_return_at_once_during_a_drain_on_request_and_shortly_after(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The draining worker accepts many of the returning clients, which then go on to another one without a pause."""
    monkeypatch.setattr(drain, "MOVE_S", 0.3)
    clients, drained = Clients(60), make()
    watch(drained, workers=25)
    assert not drained.moves_clients
    closing = asyncio.create_task(drained.close(clients.each))
    await waiting.until_async(lambda: asyncio.sleep(0, bool(clients.closed)), PATIENCE_S, "the first close")
    assert drained.moves_clients
    await closing
    assert drained.moves_clients
    await waiting.until_async(lambda: asyncio.sleep(0, not drained.moves_clients), PATIENCE_S, "the end of the move")
    assert all(returns for _, returns in clients.closed)


async def test_few_connections_are_closed_at_once(make: Make) -> None:
    clients = Clients(drain.FEW)
    stop(make(), clients, ("192.0.2.1", 1))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert [returns for _, returns in clients.closed] == [False] * drain.FEW


async def test_reload_of_uvicorn_probes_no_address(make: Make, listener: socket.socket) -> None:
    """Its parent process holds the listener, and starts the new process only after the old one."""
    drained = make()
    watch(drained, workers=1, reloads=True)
    clients = Clients(200)
    with listener:
        stop(drained, clients, listener.getsockname())
        await waiting.until_async(clients.are_closed, drain.ANSWER_S / 2, "all are closed")
    assert not any(returns for _, returns in clients.closed)


@pytest.mark.parametrize("seconds", [0.5, 0.0])
async def test_few_connections_return_at_once_where_another_process_answers(
    make: Make, listener: socket.socket, seconds: float
) -> None:
    """Without a time for the drain, the address is not probed."""
    drained = make(seconds=seconds)
    watch(drained, may_be_replaced=True)
    clients = Clients(drain.FEW)
    async with successor(listener):
        stop(drained, clients, listener.getsockname())
        await waiting.until_async(clients.are_closed, PATIENCE_S, "all are closed")
    assert [returns for _, returns in clients.closed] == [bool(seconds)] * drain.FEW


@pytest.mark.parametrize("parent_starts", [True, False])
async def test_few_connections_do_not_wait_long_where_no_process_answers(
    make: Make, listener: socket.socket, monkeypatch: pytest.MonkeyPatch, parent_starts: bool
) -> None:
    """The listener is open."""
    monkeypatch.setattr(drain, "FEW_ANSWER_S", 0.1)
    drained = make()
    config = watch(drained, timeout_s=5.0, parent_starts=lambda: parent_starts, may_be_replaced=True)
    clients = Clients(drain.FEW)
    with listener:
        stop(drained, clients, listener.getsockname())
        await waiting.until_async(clients.are_closed, drain.BOOT_S / 2, "all are closed")
    assert [returns for _, returns in clients.closed] == [False] * drain.FEW
    assert config.timeout_graceful_shutdown == pytest.approx(5.0 + drain.SIBLINGS_S + 0.1)


async def test_connect_and_answer_share_the_time_of_the_probe(
    make: Make, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The listener answers no request, and a connect to it takes most of the time."""
    monkeypatch.setattr(drain, "FEW_ANSWER_S", 1.0)
    drained, clients = make(), Clients(drain.FEW)
    watch(drained, may_be_replaced=True)
    connect = drained._connect

    async def connect_slowly() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        await asyncio.sleep(0.9)
        return await connect()

    monkeypatch.setattr(drained, "_connect", connect_slowly)
    begun_s = asyncio.get_running_loop().time()
    with listener:
        stop(drained, clients, listener.getsockname())
        await waiting.until_async(clients.are_closed, PATIENCE_S, "all are closed")
    assert clients.closed[0][0] - begun_s < 0.9 + drain.FEW_ANSWER_S


@pytest.mark.parametrize("server", ["another machine", "a new worker of a reload"])
async def test_few_connections_return_at_once_where_another_process_is_known_to_serve(make: Make, server: str) -> None:
    drained = make(has_others=lambda: server == "another machine")
    drained.is_relieved = server == "a new worker of a reload"
    clients = Clients(drain.FEW)
    stop(drained, clients, ("192.0.2.1", 1))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert [returns for _, returns in clients.closed] == [True] * drain.FEW


async def test_connections_are_closed_at_once_where_no_process_listens(make: Make, listener: socket.socket) -> None:
    address = listener.getsockname()
    listener.close()
    clients = Clients(200)
    stop(make(seconds=60.0), clients, address)
    await waiting.until_async(clients.are_closed, PATIENCE_S, "all are closed")
    assert not any(returns for _, returns in clients.closed)


async def test_no_connection_is_closed_before_the_new_process_answers(make: Make, listener: socket.socket) -> None:
    """The parent process holds the listener, so connects succeed; the new worker starts later."""
    clients = Clients(200)
    drained = make()
    watch(drained, parent_starts=lambda: True)
    stop(drained, clients, listener.getsockname())
    await asyncio.sleep(0.2)
    assert clients.closed == []
    async with successor(listener):
        await waiting.until_async(clients.are_closed, PATIENCE_S, "all are closed")
    assert all(returns for _, returns in clients.closed)


async def test_rest_is_closed_at_once_when_the_other_process_stops(
    make: Make, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drain, "PROBE_S", 0.1)
    clients = Clients(200)
    async with successor(listener):
        stop(make(seconds=600.0), clients, listener.getsockname())

        async def have_begun() -> bool:
            return bool(clients.closed)

        await waiting.until_async(have_begun, PATIENCE_S, "the first close")
    await waiting.until_async(clients.are_closed, PATIENCE_S, "all are closed")
    assert not clients.closed[-1][1]


async def test_other_machines_are_not_probed(make: Make) -> None:
    clients = Clients(200)
    stop(make(has_others=lambda: True), clients, ("192.0.2.1", 1))
    await waiting.until_async(clients.are_closed, PATIENCE_S, "all are closed")
    assert all(returns for _, returns in clients.closed)


async def test_paced_drain_lengthens_the_servers_time_out_and_a_short_one_does_not(make: Make) -> None:
    for count, expected in ((3, 5.0), (200, 5.0 + 0.5)):
        drained = make(has_others=lambda: True)
        config = watch(drained, timeout_s=5.0)
        clients = Clients(count)
        stop(drained, clients, ("192.0.2.1", 1))
        await waiting.until_async(clients.are_closed, PATIENCE_S, "all are closed")
        assert config.timeout_graceful_shutdown == expected


async def test_failing_close_does_not_stop_the_others(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    clients = Clients(3)

    def fail(*, returns: bool) -> None:
        raise ValueError("no transport")

    clients.each[0].restart = fail  # type: ignore[method-assign]
    stop(make(), clients, None)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(clients.closed) == 2
    assert "no transport" in caplog.text


def test_process_that_holds_a_listener_is_recognized(listener: socket.socket) -> None:
    inodes = drain.inodes([listener])
    assert drain.holds(os.getpid(), inodes)
    listener.close()
    assert not drain.holds(os.getpid(), inodes)


async def test_drain_that_fails_closes_its_connections_at_once(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(*_: object) -> None:
        raise ZeroDivisionError

    drained, clients = make(), Clients(200)
    monkeypatch.setattr(drained, "_is_answered", fail)
    monkeypatch.setattr(drained, "_close_paced", fail)
    stop(drained, clients, ("127.0.0.1", 1))
    await waiting.until_async(clients.are_closed, PATIENCE_S, "all connections are closed")

    async def is_logged() -> bool:
        return "drain of a stopping worker failed" in caplog.text

    await waiting.until_async(is_logged, PATIENCE_S, "the failure is logged")
