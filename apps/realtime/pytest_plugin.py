"""Fixtures for the tests of a project. In its top conftest.py:

    pytest_plugins = ["apps.realtime.pytest_plugin"]

`realtime_events`: what the test publishes, in place of sending it (`apps.realtime.testing`).
`realtime_server`: a real server with the test's database (`apps.realtime.live_server`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from apps.realtime import testing


@pytest.fixture
def realtime_events() -> Iterator[testing.Events]:
    with testing.captured_events() as events:
        yield events


@pytest.fixture
def realtime_server(transactional_db: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """An `apps.realtime.live_server.RunningServer`."""
    from apps.realtime import live_server  # models cannot be imported while pytest collects its plugins

    folder: Path = tmp_path_factory.mktemp("server")
    with live_server.running_server(folder) as server:
        yield server
