"""The servers that the integration tests share, one of each kind for the whole session."""

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
    """Each of the three documented ways to run Fanfare."""
    chosen: servers.Server = request.getfixturevalue(request.param)
    return chosen


@pytest.fixture
def api(server: servers.Server) -> pusher.Pusher:
    """The vendor's Python SDK, pointed at the server under test."""
    return sdk.client(server)


@pytest.fixture(scope="session")
def pusher_js() -> Iterator[pusherjs.Runtime]:
    """pusher-js in Node, as npm delivers it."""
    with pusherjs.Runtime() as runtime:
        yield runtime
