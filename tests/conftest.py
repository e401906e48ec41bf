"""Fixtures for tests with real servers: the fleet, and the check that no server logs a traceback."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Generator, Iterator
from types import FrameType
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, settings

from tests.harness import packages, servers

LOG_TAIL = 6_000  # characters of a server's log in the report of a failed test: about the last minute
FLEET = pytest.StashKey[servers.Fleet]()
LOGS_BEFORE = pytest.StashKey[dict[servers.Server, int]]()


# On a busy machine, an example and its generation may take seconds.
settings.register_profile("fanfare", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fanfare")


def pytest_configure() -> None:
    """On SIGTERM, pytest still tears down its fixtures, so that no server keeps running."""

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second SIGTERM must not interrupt the teardown
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGTERM, end)


@pytest.hookimpl(optionalhook=True)  # the mutation check runs without xdist
def pytest_xdist_auto_num_workers() -> int:
    """`-n auto`: more processes than cores, because the unit tests wait for most of their time."""
    return (os.cpu_count() or 1) * 3 // 2


@pytest.fixture(scope="session")
def fleet(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Fleet]:
    """Starts servers and stops all of them at the end of the session."""
    fleet = servers.Fleet(tmp_path_factory.mktemp("fleet"))
    request.config.stash[FLEET] = fleet
    yield fleet
    fleet.stop()


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> packages.Built:
    """The wheel and the source distribution of this checkout."""
    return packages.Built(tmp_path_factory.mktemp("dist"))


@pytest.fixture
def start(fleet: servers.Fleet) -> Iterator[Callable[..., servers.Server]]:
    """`start(command, deployment=None)`: a server for this test alone, stopped after it unless the test stops it."""
    begun: list[servers.Server] = []

    def begin(*arguments: object, **options: object) -> servers.Server:
        server = fleet.start(*arguments, **options)  # type: ignore[arg-type]
        begun.append(server)
        return server

    yield begin
    for server in begun:
        if server.process.poll() is None or server.remaining_processes():
            server.stop()


@pytest.fixture
def name() -> Callable[[str], str]:
    """Unique channel names, because tests share servers."""

    def unique(prefix: str) -> str:
        return f"{prefix}-{uuid4().hex[:12]}"

    return unique


@pytest.fixture(autouse=True)
def clean_logs(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail the test if a server logs a traceback during it, unless `tracebacks_expected` gives a reason."""
    if "fleet" not in request.fixturenames:
        yield
        return
    fleet: servers.Fleet = request.getfixturevalue("fleet")
    before = request.node.stash[LOGS_BEFORE] = fleet.log_sizes()
    yield
    for server, written in _written_since(fleet, before):
        if "Traceback (most recent call last)" in written and server.tracebacks_expected is None:
            pytest.fail(f"traceback in the log of {server.command}:\n{written[-LOG_TAIL:]}", pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add what the servers logged during a failed test to its report."""
    report = yield
    fleet = item.config.stash.get(FLEET, None)
    if report.failed and fleet is not None:
        for server, written in _written_since(fleet, item.stash.get(LOGS_BEFORE, {})):
            report.sections.append((f"log of {server.command} on port {server.port}", written[-LOG_TAIL:]))
    return report


def _written_since(fleet: servers.Fleet, before: dict[servers.Server, int]) -> Iterator[tuple[servers.Server, str]]:
    for server in fleet.servers:
        written = server.log_text(before.get(server, 0))
        if written:
            yield server, written
