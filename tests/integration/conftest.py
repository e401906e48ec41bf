"""Servers that the integration tests share: one per command and session."""

from __future__ import annotations

from collections.abc import Iterator

import pusher
import pytest

from tests.harness import pusherjs, sdk, servers


@pytest.fixture(scope="session")
def uvicorn(fleet: servers.Fleet) -> servers.Server:
    return fleet.start("uvicorn")


@pytest.fixture(scope="session")
def four_workers(fleet: servers.Fleet) -> servers.Server:
    return fleet.start("gunicorn")


@pytest.fixture(scope="session")
def daphne(fleet: servers.Fleet) -> servers.Server:
    return fleet.start("daphne")


@pytest.fixture(params=["uvicorn", "four_workers", "daphne"])
def server(request: pytest.FixtureRequest) -> servers.Server:
    """Each of the three documented server commands."""
    chosen: servers.Server = request.getfixturevalue(request.param)
    return chosen


@pytest.fixture
def api(server: servers.Server) -> pusher.Pusher:
    """The vendor's Python SDK, configured for the server under test."""
    return sdk.client(server)


@pytest.fixture(scope="session")
def pusher_js() -> Iterator[pusherjs.Runtime]:
    """Node with the pusher-js of npm."""
    with pusherjs.Runtime() as runtime:
        yield runtime
