"""JSON responses from plain ASGI."""

from __future__ import annotations

from typing import Any

import orjson
from asgiref.typing import ASGISendCallable


async def json(
    send: ASGISendCallable, status: int, value: Any, headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    """A response with Cache-Control: no-store."""
    body = orjson.dumps(value)
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                (b"cache-control", b"no-store"),
                *(headers or []),
            ],
            "trailers": False,
        }
    )
    await send({"type": "http.response.body", "body": body, "more_body": False})
