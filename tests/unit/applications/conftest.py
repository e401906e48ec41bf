from __future__ import annotations

import pytest

from fanfare.applications import test_environment
from fanfare.engine import current
from tests.unit.applications import fakes


@pytest.fixture(autouse=True)
def log(monkeypatch: pytest.MonkeyPatch) -> fakes.Log:
    """What the applications announce goes here, not to an engine's files."""
    log = fakes.Log()
    monkeypatch.setattr(current, "current", lambda: log)
    monkeypatch.setattr(test_environment, "is_active", lambda: False)  # the tests of a project announce nothing
    return log
