"""Pages with the plugin come back soon after an outage; `python -m tests.browser.returns` measures how soon."""

from __future__ import annotations

import asyncio

import pytest

from tests.browser import returns
from tests.harness import servers


@pytest.mark.parametrize("away_s", [0.5, 4.0])
def test_pages_return_long_before_pusher_js_alone_would(
    production: servers.Server, away_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pusher-js alone waits for 15 s after an attempt that failed."""
    monkeypatch.setattr(returns, "AWAY_S", (away_s, away_s))
    monkeypatch.setattr(returns, "PATIENCE_S", 12.0)
    assert len(asyncio.run(returns.measure(production, 2))) == 2
