"""The log and the hub as the applications see them, in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple

from fanfare.engine import errors, interface


class Log:
    """Takes announcements from any thread and gives them to the hubs that follow, each on its own loop."""

    def __init__(self) -> None:
        self.publications: list[interface.Publication] = []
        self.writes = 0
        self.is_down = False
        self.followers: list[Callable[[interface.Publication], object]] = []

    @property
    def announced(self) -> list[str]:
        return [publication.app for publication in self.publications]

    def append_blocking(
        self, publications: Sequence[interface.Publication], timeout: float | None = None
    ) -> list[interface.Receipt]:
        if self.is_down:
            raise errors.EngineUnavailable("the disk is full")
        self.writes += 1
        self.publications += publications
        for publication in publications:
            for follower in self.followers:
                follower(publication)
        return [interface.Receipt(None, False)] * len(publications)

    def statistics(self) -> dict[str, int | float]:
        return {"workers": 1}


class Closed(NamedTuple):
    app: str
    code: int
    message: str


class Hub:
    """Follows a Log and records the applications whose connections are closed."""

    def __init__(self, log: Log) -> None:
        self.closed: list[Closed] = []
        self._handlers: dict[str, Callable[[str, bytes], None]] = {}
        loop = asyncio.get_running_loop()
        log.followers.append(
            lambda entry: loop.call_soon_threadsafe(self.deliver, entry.channel, entry.app, entry.body)
        )

    def on_control(self, command: str, handler: Callable[[str, bytes], None]) -> None:
        self._handlers[command] = handler

    def close_application(self, app: str, code: int, message: str) -> None:
        self.closed.append(Closed(app, code, message))

    def deliver(self, command: str, app: str, body: bytes) -> None:
        """An entry of the log has arrived; call it on the loop."""
        handler = self._handlers.get(command)
        if handler is not None:
            handler(app, body)
