"""Servers that the integration tests share: one per command and session."""

from __future__ import annotations

from collections.abc import Iterator

import pusher
import pytest

from tests.harness import packages, pusherjs, sdk, servers


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


@pytest.fixture(scope="session")
def lts_site(built: packages.Built, tmp_path_factory: pytest.TempPathFactory) -> packages.Site:
    """The wheel with the oldest Django that it supports, on the Python that runs the tests."""
    return packages.Site(tmp_path_factory.mktemp("lts") / "venv", [str(built.wheel), "django~=5.2.0"])


@pytest.fixture(scope="session")
def newest_site(built: packages.Built, tmp_path_factory: pytest.TempPathFactory) -> packages.Site:
    """The wheel with the newest Django, on the newest Python of this machine."""
    python = packages.newest_python()
    return packages.Site(tmp_path_factory.mktemp("newest") / "venv", [str(built.wheel), "django"], python=python)


@pytest.fixture(params=["lts_site", "newest_site"])
def site(request: pytest.FixtureRequest) -> packages.Site:
    """A fresh virtual environment with the wheel, for each Django."""
    chosen: packages.Site = request.getfixturevalue(request.param)
    return chosen
