from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest

from fanfare.engine import current
from tests.unit.channel_layer import processes


@pytest.fixture
async def process(make_engine, monkeypatch) -> AsyncIterator[Callable[[], processes.Process]]:
    """Creates simulated processes that share a log; the fixture closes their engines."""
    monkeypatch.setattr(current, "_make", make_engine)
    monkeypatch.setattr(current, "_engine", None)
    made: list[processes.Process] = []

    def make() -> processes.Process:
        made.append(processes.Process())
        return made[-1]

    yield make
    for one in made:
        await one.transport.close()
    await current.current().close()


@pytest.fixture
async def layer(process):
    """A layer in a receiving process."""
    layer = process().layer(capacity=3)
    await layer.new_channel()
    return layer
