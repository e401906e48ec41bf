from __future__ import annotations

import asyncio
import os
import signal

import pytest

from fanfare.server import draining


@pytest.fixture
def handled():
    """The signals that the server's own handler got."""
    found = []
    before = signal.signal(signal.SIGQUIT, lambda number, frame: found.append(number))
    yield found
    signal.signal(signal.SIGQUIT, before)


@pytest.fixture
def prompt(monkeypatch):
    monkeypatch.setattr(draining, "LINGER_S", 0.01)


async def test_signal_begins_the_stop_before_the_servers_own_handler(handled, prompt):
    order = []
    begun = asyncio.Event()

    def begin():
        order.extend(["begin", list(handled)])
        begun.set()

    undo = draining.at_signal(begin)
    os.kill(os.getpid(), signal.SIGQUIT)
    async with asyncio.timeout(20):
        await begun.wait()
        while not handled:
            await asyncio.sleep(0)
    assert order == ["begin", []]
    undo()


async def test_servers_own_handler_runs_after_the_end_of_the_worker(handled, prompt):
    finished = asyncio.get_running_loop().create_future()
    asked = asyncio.Event()

    def finish():
        asked.set()
        return finished

    undo = draining.at_signal(lambda: None, finish)
    os.kill(os.getpid(), signal.SIGQUIT)
    async with asyncio.timeout(20):
        await asked.wait()
    assert handled == []
    finished.set_exception(RuntimeError("the store is away"))
    async with asyncio.timeout(20):
        while not handled:
            await asyncio.sleep(0)
    undo()


async def test_worker_that_does_not_end_delays_the_stop_within_bounds(handled, prompt, monkeypatch):
    monkeypatch.setattr(draining, "FINISH_S", 0.01)
    never = asyncio.get_running_loop().create_future()
    undo = draining.at_signal(lambda: None, lambda: never)
    os.kill(os.getpid(), signal.SIGQUIT)
    async with asyncio.timeout(20):
        while not handled:
            await asyncio.sleep(0)
    never.cancel()
    await asyncio.sleep(0)
    assert handled == [signal.SIGQUIT]
    undo()


async def test_second_signal_does_not_wait(handled):
    undo = draining.at_signal(lambda: None)
    os.kill(os.getpid(), signal.SIGQUIT)
    await asyncio.sleep(0)
    assert handled == []
    os.kill(os.getpid(), signal.SIGQUIT)
    await asyncio.sleep(0)
    assert handled == [signal.SIGQUIT]
    undo()


async def test_undo_puts_the_handler_back(handled):
    before = signal.getsignal(signal.SIGQUIT)
    undo = draining.at_signal(lambda: None)
    assert signal.getsignal(signal.SIGQUIT) is not before
    undo()
    assert signal.getsignal(signal.SIGQUIT) is before


@pytest.fixture
def hang_up():
    before = signal.getsignal(signal.SIGHUP)
    yield
    signal.signal(signal.SIGHUP, before)


async def test_hang_up_stops_the_server_as_sigterm_does(hang_up):
    found = asyncio.Event()
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, found.set)
    try:
        draining.stop_at_hang_up()
        os.kill(os.getpid(), signal.SIGHUP)
        async with asyncio.timeout(20):
            await found.wait()
    finally:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)


@pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda _number, _frame: None])
async def test_hang_up_stays_ignored_or_with_the_servers_own_handler(hang_up, handler):
    signal.signal(signal.SIGHUP, handler)
    draining.stop_at_hang_up()
    assert signal.getsignal(signal.SIGHUP) is handler
