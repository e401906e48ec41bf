"""Stops cleanly below servers that tell an application of their stop only after its last connection has ended.

uvicorn tells each WebSocket, and `hub.on_uvicorn` each event stream, when it begins to stop. gunicorn's own ASGI worker
(`-k asgi`) waits for open connections first, up to its time-out, and then breaks them off; Daphne breaks them off at
once. Here the signal itself begins the stop: clients get their close code, and the server finds no connection.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable
from typing import Any, Final

LINGER_S: Final = 0.3
SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)


def at_signal(begin: Callable[[], None]) -> Callable[[], None]:
    """Call `begin` in the running loop when the process gets a signal that the server stops at. The server's own
    handler runs, too. Returns a function that puts the handlers back.

    Does nothing outside of the main thread, where a test's process is around the server.
    """
    replaced: dict[signal.Signals, tuple[Any, Any]] = {}
    if threading.current_thread() is threading.main_thread():
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            previous = signal.getsignal(number)
            if callable(previous):  # the default ends the process at once
                handler = _before(previous, loop, begin)
                replaced[number] = (handler, previous)
                signal.signal(number, handler)
                signal.siginterrupt(number, False)

    def undo() -> None:
        for number, (handler, previous) in replaced.items():
            if signal.getsignal(number) is handler:
                signal.signal(number, previous)

    return undo


def _before(
    previous: Callable[[int, Any], Any], loop: asyncio.AbstractEventLoop, begin: Callable[[], None]
) -> Callable[[int, Any], None]:
    """The handlers of asyncio's loops run in any case: they read signals from a file descriptor, and `previous` does
    nothing then. Others, such as Twisted's, run after `LINGER_S`, in which close frames are written; a second signal
    does not wait.
    """
    has_begun = False

    def stop(number: int) -> None:
        begin()
        loop.call_later(LINGER_S, previous, number, None)

    def handle(number: int, frame: Any) -> None:
        nonlocal has_begun
        if has_begun or loop.is_closed():
            previous(number, frame)
        else:
            has_begun = True
            loop.call_soon_threadsafe(stop, number)

    return handle
