"""Fixtures for the tests of a project. In its top conftest.py:

    pytest_plugins = ["fanfare.integration.pytest_plugin"]

`realtime_events`: what the test publishes, in place of sending it (`fanfare.integration.testing`).
`realtime_server`: a real server with the test's database (`fanfare.integration.live_server`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fanfare.integration import testing


@pytest.fixture
def realtime_events() -> Iterator[testing.Events]:
    with testing.captured_events() as events:
        yield events


@pytest.fixture
def realtime_server(transactional_db: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """An `fanfare.integration.live_server.RunningServer`."""
    from fanfare.integration import live_server  # models cannot be imported while pytest collects its plugins

    folder: Path = tmp_path_factory.mktemp("server")
    with live_server.running_server(folder) as server:
        yield server
