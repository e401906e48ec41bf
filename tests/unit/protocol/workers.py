"""A worker with one application: a real hub over an engine in memory, and the browsers that connected to it."""

from __future__ import annotations

from typing import Any

from fanfare.applications import registry
from fanfare.hub import hub
from fanfare.protocol import consumers, sessions, termination
from tests.unit.protocol import fakes


class Worker:
    def __init__(self) -> None:
        self.engine = fakes.Engine()
        self.hub = hub.Hub(self.engine)
        termination.register(self.hub)
        self.registry = registry.Registry()
        self.registry.put(fakes.APPLICATION)
        self.application = consumers.PusherConsumer.as_asgi(
            hub=self.hub,
            registry=self.registry,
            options=sessions.Options(activity_timeout=77),
            max_frame_bytes=1_000,
        )
        self.browsers: list[fakes.Browser] = []

    def browser(self, *arguments: Any, **options: Any) -> fakes.Browser:
        browser = fakes.Browser(self.application, *arguments, **options)
        self.browsers.append(browser)
        return browser

    async def connected(self) -> fakes.Browser:
        return await self.browser().connected()
