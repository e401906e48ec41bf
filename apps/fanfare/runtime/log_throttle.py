"""Log throttle: bounds the number of log lines that clients or broken services can cause."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

INTERVAL_S = 60.0
MAX_KEYS = 1_000  # windows that are kept; a caller may use values from outside as keys


@dataclass(slots=True)
class _Window:
    """One interval of one key. `last`: the newest suppressed line."""

    end_s: float
    logged: int = 0
    left_out: int = 0
    last: tuple[int, str, tuple[object, ...]] = (0, "", ())


class LogThrottle:
    """Writes the first line of a kind at once, and then one line per interval that counts the others.

    A kind is a `key`, by default the message before its arguments are filled in. `burst` lines per interval are written
    at once. The summary is the newest suppressed line with the number of suppressed lines. With a running event loop it
    is written at the end of the interval, in a thread with the next line. Thread-safe.
    """

    def __init__(
        self,
        logger: logging.Logger,
        interval_s: float = INTERVAL_S,
        *,
        burst: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._logger = logger
        self._interval_s = interval_s
        self._burst = burst
        self._clock = clock
        self._windows: dict[object, _Window] = {}  # oldest first
        self._lock = threading.Lock()

    def info(self, message: str, *args: object, key: object = None) -> None:
        self.log(logging.INFO, message, *args, key=key)

    def warning(self, message: str, *args: object, key: object = None) -> None:
        self.log(logging.WARNING, message, *args, key=key)

    def error(self, message: str, *args: object, key: object = None, error: BaseException | None = None) -> None:
        """Log with the traceback of `error`; summaries have none."""
        self.log(logging.ERROR, message, *args, key=key, error=error)

    def log(
        self, level: int, message: str, *args: object, key: object = None, error: BaseException | None = None
    ) -> None:
        key = message if key is None else key
        now = self._clock()
        with self._lock:
            window = self._windows.get(key)
            if window is None or now >= window.end_s:
                left_out = 0 if window is None else window.left_out
                window = self._open(key, now)
            else:
                left_out = 0
            if window.logged >= self._burst:
                window.left_out += 1
                window.last = (level, message, args)
                if window.left_out == 1:
                    self._summarize_later(key, window, window.end_s - now)
                return
            window.logged += 1
        if left_out:
            message, args = f"{message} (%d more since the last line)", (*args, left_out)
        self._logger.log(level, message, *args, exc_info=error)

    def _open(self, key: object, now: float) -> _Window:
        self._windows.pop(key, None)
        while len(self._windows) >= MAX_KEYS:
            del self._windows[next(iter(self._windows))]
        window = self._windows[key] = _Window(now + self._interval_s)
        return window

    def _summarize_later(self, key: object, window: _Window, seconds: float) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        loop.call_later(seconds, self._summarize, key, window)

    def _summarize(self, key: object, window: _Window) -> None:
        with self._lock:
            left_out, window.left_out = window.left_out, 0
            if not left_out or self._windows.get(key) is not window:
                return
            # The summary starts the next interval, so that a flood gets one line per interval instead of two.
            self._open(key, self._clock()).logged = self._burst
        level, message, args = window.last
        message, args = f"{message} (%d such lines in %g s)", (*args, left_out, self._interval_s)
        self._logger.log(level, message, *args)


class ThrottledRefusals(logging.Filter):
    """Passes `BURST` lines of refused requests in `INTERVAL_S`, by status, and counts the others in the next one.

    A refused request is a line of Django with a 4xx status, of `django.security` (with a traceback of 3 kB for each
    request with a wrong Host header), or of uvicorn's access log. The filter drops the traceback and cuts long paths.
    """

    BURST = 20
    CHARACTERS = 200

    def __init__(self, name: str = "", *, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(name)
        self._clock = clock
        self._windows: dict[object, _Window] = {}
        self._lock = threading.Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        status = _refusal(record)
        if status is None:
            return True
        now = self._clock()
        with self._lock:
            window = self._windows.get((record.name, status))
            left_out = 0
            if window is None or now >= window.end_s:
                left_out = 0 if window is None else window.left_out
                window = self._windows[record.name, status] = _Window(now + INTERVAL_S)
            if window.logged >= self.BURST:
                window.left_out += 1
                return False
            window.logged += 1
        record.exc_info = record.exc_text = None
        more = f" ({left_out} more since the last line)" if left_out else ""
        if record.name == ACCESS and isinstance(record.args, tuple):  # uvicorn's formatter needs all arguments
            client, method, path, version, _ = record.args
            record.args = (client, method, self._cut(str(path)) + more, version, status)
        else:
            record.msg, record.args = "%s", (self._cut(record.getMessage()) + more,)
        return True

    def _cut(self, line: str) -> str:
        return line if len(line) <= self.CHARACTERS else f"{line[: self.CHARACTERS]}…"


ACCESS = "uvicorn.access"


def _refusal(record: logging.LogRecord) -> int | None:
    """The status of the refused request that a record reports; None for other records."""
    if record.name == ACCESS:
        status = record.args[-1] if isinstance(record.args, tuple) and len(record.args) == 5 else None
    elif record.name.startswith("django.security."):
        status = getattr(record, "status_code", 400)
    else:
        status = getattr(record, "status_code", None) if record.name == "django.request" else None
    return status if isinstance(status, int) and 400 <= status < 500 else None


def exception_line(error: BaseException) -> str:
    """The class and the message of an exception, for one line."""
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


Count = Callable[[str], Any]
"""Adds one to a counter with this name: `Hub.count`."""
