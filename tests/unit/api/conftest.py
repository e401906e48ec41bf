"""One API, one application, one worker that only remembers."""

from __future__ import annotations

from typing import cast

import pytest

from fanfare.api import asgi
from fanfare.applications import registry
from fanfare.hub import hub as hubs
from tests.unit.api import fakes


@pytest.fixture
def hub() -> fakes.Hub:
    return fakes.Hub()


@pytest.fixture
def applications() -> registry.Registry:
    applications = registry.Registry()
    applications.put(fakes.APPLICATION)
    return applications


@pytest.fixture
def api(hub: fakes.Hub, applications: registry.Registry) -> asgi.Api:
    return asgi.Api(cast("hubs.Hub", hub), applications, now=lambda: fakes.NOW)


@pytest.fixture
def client(api: asgi.Api) -> fakes.Client:
    return fakes.Client(api)
