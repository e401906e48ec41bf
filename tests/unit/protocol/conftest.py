"""What the tests of the protocol share."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.unit.protocol import workers


@pytest.fixture
async def worker() -> AsyncIterator[workers.Worker]:
    worker = workers.Worker()
    await worker.hub.start()
    yield worker
    for browser in worker.browsers:
        if not browser.task.done():
            await browser.leave()
    await worker.hub.stop()
