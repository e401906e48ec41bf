"""The description as an ASGI application that costs nothing until somebody asks for it.

FastAPI and pydantic are 25 MB and a third of a second to import: a worker does without them, and when they come, a
thread brings them, so that nobody's events wait.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from fanfare.api import asgi

if TYPE_CHECKING:
    from fanfare.api.openapi import description


class Described:
    """Answers `texts.PATH`."""

    def __init__(self) -> None:
        self._loading: asyncio.Task[description.Description] | None = None

    async def __call__(self, scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        if self._loading is None:
            self._loading = asyncio.create_task(asyncio.to_thread(_load))
        application = await asyncio.shield(self._loading)
        await application(scope, receive, send)


def _load() -> description.Description:
    from fanfare.api.openapi import description

    application = description.Description()
    application.openapi()
    return application
