"""One worker: a real engine, a real hub, and the application over them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from fanfare.applications import registry, rules
from fanfare.engine import interface
from fanfare.engine.local import engine
from fanfare.hub import event_frames
from fanfare.hub import hub as hubs
from fanfare.protocol import capabilities, termination
from fanfare.sse import asgi, streams

APP, SECRET = "1", "0123456789abcdef0123"
NOW = 1_800_000_000.0
KEPT = interface.Retention(1_000, 60)

RULES = rules.Rules(
    (
        rules.Rule("*kept*", KEPT.size, KEPT.seconds, max_replay_entries=500),
        rules.Rule("rewound", KEPT.size, KEPT.seconds, rewind_count=2),
        rules.Rule("short", 3, KEPT.seconds),
    )
)


class Deployment:
    def __init__(self, folder: Path, buffer: int) -> None:
        self.hub = hubs.Hub(engine.LocalEngine(folder), max_buffer_bytes=buffer)
        self.registry = registry.Registry()
        termination.register(self.hub)
        self.application = self.serve()
        self.put()

    def put(self, **changes: Any) -> None:
        fields = {"id": APP, "key": "key", "secret": SECRET, "rules": RULES, **changes}
        self.registry.put(registry.Application(**fields))

    def serve(self, *, streams_per_address: int = 1_000, **times: float) -> asgi.Sse:
        return asgi.Sse(
            self.hub,
            self.registry,
            times=streams.Times(**times),
            streams_per_address=streams_per_address,
            now=lambda: NOW,
        )

    def token(self, *channels: str, seconds: float = 60, user_id: str | None = None, issued: float = NOW) -> str:
        return capabilities.sign(SECRET, capabilities.Capability(channels, NOW + seconds, user_id, issued))

    async def publish(self, *numbers: int, channel: str = "kept", pad: int = 0) -> None:
        rule = RULES.of(channel)
        cached = 60 if "cache-" in channel else None
        await self.hub.publish(
            [
                interface.Publication(
                    APP,
                    channel,
                    event_frames.event("n", channel, str(number) + " " * pad),
                    retention=rule.retention if rule else None,
                    cache_seconds=cached,
                )
                for number in numbers
            ]
        )


@pytest.fixture
def buffer() -> int:
    return 1024 * 1024


@pytest.fixture
async def deployment(tmp_path: Path, buffer: int) -> AsyncIterator[Deployment]:
    deployment = Deployment(tmp_path / "engine", buffer)
    await deployment.hub.start()
    yield deployment
    await deployment.hub.stop()
