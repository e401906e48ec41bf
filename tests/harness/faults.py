"""Exceptions injected into a running server: an ASGI application that a test mounts with FANFARE_ASGI_MOUNTS.

    POST /faults/arm?place=fanfare.hub.hub:Hub._sweep&times=1
    GET  /faults             {"fanfare.hub.hub:Hub._sweep": {"left": 1, "raised": 0}}
    POST /faults/disarm

The code object of the function is replaced, so that bound methods and partials that were made before raise too.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import itertools
import json
import threading
from types import CodeType, FunctionType
from typing import Any
from urllib.parse import parse_qs

from fanfare.runtime.log_throttle import LogThrottle

MOUNT = {"FANFARE_ASGI_MOUNTS": "/faults=tests.harness.faults:application"}

_lock = threading.Lock()
_armed: dict[str, _Fault] = {}

_PLAIN = """
def outer():
    {cells}
    {kind} replacement(*args, **kwargs):
        {use}
        from tests.harness import faults
        return {wait} faults.call({place!r}, args, kwargs)
    return replacement
"""


_faults = itertools.count()
_log = LogThrottle.log


def _separate_lines() -> None:
    """Let no line be suppressed from now on because of a line before."""
    number = next(_faults)

    def log(throttle: LogThrottle, level: int, message: str, *args: object, key: object = None, **more: Any) -> None:
        _log(throttle, level, message, *args, key=(number, message if key is None else key), **more)

    LogThrottle.log = log  # type: ignore[method-assign]


class InjectedError(Exception):
    """Its message names the place."""


class _Fault:
    """One function that raises `left` times more, and works again after that."""

    def __init__(self, place: str, times: int) -> None:
        self.left = times
        self.raised = 0
        self.function = function = _function(place)
        self._code, self._defaults, self._kwdefaults = function.__code__, function.__defaults__, function.__kwdefaults__
        self.original = FunctionType(
            self._code, function.__globals__, function.__name__, self._defaults, function.__closure__
        )
        self.original.__kwdefaults__ = self._kwdefaults
        function.__defaults__ = function.__kwdefaults__ = None
        function.__code__ = _replacement(place, function)

    def restore(self) -> None:
        self.function.__code__ = self._code
        self.function.__defaults__, self.function.__kwdefaults__ = self._defaults, self._kwdefaults


def _function(place: str) -> FunctionType:
    module, _, path = place.partition(":")
    found: Any = functools.reduce(getattr, path.split("."), importlib.import_module(module))
    assert isinstance(found, FunctionType), f"{place} is a {type(found).__name__}"
    return found


def _replacement(place: str, function: FunctionType) -> CodeType:
    free = function.__code__.co_freevars
    is_async = inspect.iscoroutinefunction(function)
    source = _PLAIN.format(
        cells=f"{' = '.join(free)} = None" if free else "pass",
        use=f"({', '.join(free)},)" if free else "pass",
        kind="async def" if is_async else "def",
        wait="await" if is_async else "",
        place=place,
    )
    space: dict[str, Any] = {}
    exec(source, space)  # the only way to get a code object with these free variables
    code: CodeType = space["outer"]().__code__
    return code


def call(place: str, args: Any, kwargs: Any) -> Any:
    """In place of the function."""
    with _lock:
        fault = _armed.get(place)
        if fault is not None and fault.left > 0:
            fault.left -= 1
            fault.raised += 1
            raise InjectedError(f"injected into {place}")
    assert fault is not None
    return fault.original(*args, **kwargs)


def arm(place: str, times: int) -> None:
    """Idempotent; the counts start again, and no line of the log is suppressed because of an earlier fault."""
    _separate_lines()
    with _lock:
        if place in _armed:
            _armed[place].left, _armed[place].raised = times, 0
        else:
            _armed[place] = _Fault(place, times)


def disarm() -> None:
    """No function raises from now on. The code stays replaced: a call may be in it."""
    with _lock:
        for fault in _armed.values():
            fault.left = 0


async def application(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        for step in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{step}.complete"})
        return
    action = scope["path"].removeprefix("/faults").strip("/")
    query = {name: value[-1] for name, value in parse_qs(scope["query_string"].decode()).items()}
    if action == "arm":
        arm(query["place"], int(query.get("times", "1")))
    elif action == "disarm":
        disarm()
    with _lock:
        state = {place: {"left": fault.left, "raised": fault.raised} for place, fault in _armed.items()}
    body = json.dumps(state).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": body})
