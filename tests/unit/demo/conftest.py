from __future__ import annotations

from collections.abc import Iterator

import pytest

from apps.applications import models
from apps.engine import current
from apps.realtime import application as applications
from tests.unit.realtime import recording


@pytest.fixture(autouse=True)
def log(monkeypatch: pytest.MonkeyPatch) -> recording.Recording:
    log = recording.Recording()
    monkeypatch.setattr(current, "current", lambda: log)
    return log


@pytest.fixture(autouse=True)
def nothing_remembered() -> Iterator[None]:
    applications.forget()
    yield
    applications.forget()


@pytest.fixture
def application(db: None) -> models.Application:
    return models.Application.objects.create(name="default", app_id="7", key="key-7", secret="secret-7")
