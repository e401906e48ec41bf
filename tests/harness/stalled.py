"""An engine that accepts entries and does not deliver them: an ASGI application for FANFARE_ASGI_MOUNTS.

A request to /stalled stops the log reader of the worker that answers it.
"""

from __future__ import annotations

from typing import Any

from fanfare.engine.local.reader import LogReader

MOUNT = {"FANFARE_ASGI_MOUNTS": "/stalled=tests.harness.stalled:application"}


async def application(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        return
    LogReader.advance = lambda self: None  # type: ignore[method-assign]
    LogReader.take = lambda self, added: False  # type: ignore[method-assign]
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})
