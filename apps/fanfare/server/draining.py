"""Stops cleanly below servers that notify an application of their stop only after its last connection has ended.

uvicorn notifies each WebSocket, and `hub.on_uvicorn` each SSE connection, when its stop begins. gunicorn's own ASGI
worker (`-k asgi`) waits for open connections first, up to its timeout, and then drops them; Daphne drops them at once.
With this module the signal itself begins the stop: clients get their close code, and the server finds no connection.

Daphne has no lifespan either. There the signal also ends the worker, before Daphne's own handler ends the process.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Final

from fanfare.runtime.supervisor import Supervisor

LINGER_S: Final = 0.3
FINISH_S: Final = 5.0  # for `finish`; process supervisors grant 10 s
SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)


Finish = Callable[[], "asyncio.Future[Any]"]


def at_signal(begin: Callable[[], None], finish: Finish | None = None) -> Callable[[], None]:
    """Call `begin` in the running loop when the process gets a signal that the server stops at, then `finish`. The
    server's own handler runs when the future of `finish` is done, or after `FINISH_S`. Returns a function that puts the
    handlers back.

    Does nothing outside of the main thread, where a test's process is around the server.
    """
    replaced: dict[signal.Signals, tuple[Any, Any]] = {}
    if threading.current_thread() is threading.main_thread():
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            previous = signal.getsignal(number)
            if callable(previous):  # the default ends the process at once
                handler = _before(previous, loop, begin, finish)
                replaced[number] = (handler, previous)
                signal.signal(number, handler)
                signal.siginterrupt(number, False)

    def undo() -> None:
        for number, (handler, previous) in replaced.items():
            if signal.getsignal(number) is handler:
                signal.signal(number, previous)

    return undo


def _before(
    previous: Callable[[int, Any], Any],
    loop: asyncio.AbstractEventLoop,
    begin: Callable[[], None],
    finish: Finish | None,
) -> Callable[[int, Any], None]:
    """The handlers of asyncio's loops run in any case: they read signals from a file descriptor, and `previous` does
    nothing then. Others, such as Twisted's, run after `LINGER_S`, in which close frames are written, and after
    `finish`; a second signal does not wait.
    """
    has_begun = has_ended = False

    def stop(number: int) -> None:
        begin()
        loop.call_later(LINGER_S, end, number)

    def end(number: int) -> None:
        def proceed(_: Any = None) -> None:
            nonlocal has_ended
            if not has_ended:
                has_ended = True
                previous(number, None)

        if finish is None:
            proceed()
        else:
            loop.call_later(FINISH_S, proceed)
            finish().add_done_callback(proceed)

    def handle(number: int, frame: Any) -> None:
        nonlocal has_begun, has_ended
        if has_begun or loop.is_closed():
            has_ended = True
            previous(number, frame)
        else:
            has_begun = True
            loop.call_soon_threadsafe(stop, number)

    return handle


def stop_at_hang_up() -> None:
    """Let SIGHUP, which a terminal sends when it is closed, stop this process as SIGTERM does.

    gunicorn's master and the parent process of `uvicorn --workers` reload at SIGHUP. Other servers have no handler, and
    the signal would end them without a drain. Below `nohup`, where it is ignored, it stays so.
    """
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, lambda _number, _frame: os.kill(os.getpid(), signal.SIGTERM))
        signal.siginterrupt(signal.SIGHUP, False)


def postpone(wait: Callable[[], Coroutine[Any, Any, None]], tasks: Supervisor, is_urgent: Callable[[], bool]) -> None:
    """Run the server's handler of SIGTERM after `wait()`, and meanwhile serve on.

    gunicorn repeats the signal every second. If it comes again and `is_urgent()`, the handler runs at once.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    loop = asyncio.get_running_loop()
    previous = signal.getsignal(signal.SIGTERM)
    if not callable(previous):
        return
    waiting = False
    is_over = False

    def proceed() -> None:
        nonlocal is_over
        if not is_over:
            is_over = True
            previous(signal.SIGTERM, None)

    async def run() -> None:
        try:
            await wait()
        finally:
            proceed()

    def begin() -> None:
        nonlocal waiting
        if not waiting:
            waiting = True
            tasks.spawn("wait before the stop", run())
        elif is_urgent():
            proceed()

    def handle(number: int, frame: Any) -> None:
        if is_over or loop.is_closed():
            previous(number, frame)
        else:
            loop.call_soon_threadsafe(begin)

    signal.signal(signal.SIGTERM, handle)
    signal.siginterrupt(signal.SIGTERM, False)
