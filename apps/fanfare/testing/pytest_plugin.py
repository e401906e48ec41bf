"""Fixtures for the tests of a project. In its top conftest.py:

    pytest_plugins = ["fanfare.testing.pytest_plugin"]

`fanfare_events`: what the test publishes, in place of sending it: the `Events` of `captured_events()`.
`fanfare_server`: a `RunningServer` with the test's database; the test uses pytest-django's `transactional_db`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fanfare import testing


@pytest.fixture
def fanfare_events() -> Iterator[testing.Events]:
    with testing.captured_events() as events:
        yield events


@pytest.fixture
def fanfare_server(transactional_db: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[testing.RunningServer]:
    folder: Path = tmp_path_factory.mktemp("server")
    with testing.running_server(folder) as server:
        yield server
