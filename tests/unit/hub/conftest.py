"""A hub on a scripted engine."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from fanfare.hub import hub as hubs
from tests.unit.hub.doubles import ScriptedEngine


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture
async def hub(engine: ScriptedEngine) -> AsyncIterator[hubs.Hub]:
    hub = hubs.Hub(engine)
    await hub.start()
    yield hub
    await hub.stop()
