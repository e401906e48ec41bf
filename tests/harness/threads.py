"""Asynchronous test servers for synchronous tests: an event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Generic, TypeVar

from tests.harness import waiting

T = TypeVar("T")
R = TypeVar("R")

START_SECONDS = 20.0
CALL_SECONDS = 20.0


class InThread(Generic[T]):
    """`resource` belongs to the loop's thread; the test calls it through `do`."""

    def __init__(self, resource: T, loop: asyncio.AbstractEventLoop) -> None:
        self.resource = resource
        self._loop = loop

    def do(self, action: Callable[[], R]) -> R:
        """Run `action` in the loop's thread and return its result."""

        async def act() -> R:
            return action()

        return asyncio.run_coroutine_threadsafe(act(), self._loop).result(CALL_SECONDS)

    def run(self, action: Callable[[], Coroutine[Any, Any, R]], timeout_s: float = CALL_SECONDS) -> R:
        """Run a coroutine function in the loop's thread and return its result."""
        return asyncio.run_coroutine_threadsafe(action(), self._loop).result(timeout_s)


@contextlib.contextmanager
def in_thread(manager: contextlib.AbstractAsyncContextManager[T]) -> Iterator[InThread[T]]:
    """Enter `manager` in a new loop and thread; leave it at the end."""
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()
    entered: list[T] = []

    async def serve() -> None:
        async with manager as resource:
            entered.append(resource)
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        waiting.until(lambda: entered, START_SECONDS, f"{manager} is open")
        yield InThread(entered[0], loop)
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()
