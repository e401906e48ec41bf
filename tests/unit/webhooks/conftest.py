from __future__ import annotations

import pytest

from fanfare.applications.models import Application, WebhookEndpoint
from fanfare.engine import current
from tests.unit.applications import fakes


@pytest.fixture(autouse=True)
def log(monkeypatch: pytest.MonkeyPatch) -> fakes.Log:
    """What the applications announce goes here, not to an engine's files."""
    log = fakes.Log()
    monkeypatch.setattr(current, "current", lambda: log)
    return log


@pytest.fixture
def endpoint() -> WebhookEndpoint:
    application = Application.objects.create(name="Shop", app_id="42", key="shop-key", secret="shop-secret")
    return WebhookEndpoint.objects.create(application=application, url="https://example.com/hook")
