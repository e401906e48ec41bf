"""The suite finds faults: with each mutant of an engine at least one of the tests that are named beside it fails."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fanfare.engine.local import schema
from fanfare.engine.local import worker as local_worker
from fanfare.engine.postgres import leases, upkeep
from fanfare.engine.redis import leases as redis_leases
from fanfare.engine.redis import scripts
from tests.harness import postgresql, redisserver, waiting
from tests.unit.engine import (
    conformance,
    deployments,
    failures,
    local_deployment,
    mutants,
    postgres_deployment,
    redis_deployment,
)
from tests.unit.engine.workers import Worker

PATIENCE_S = 2.0  # for what a mutant never does
TEST_S = 40.0
TRIES = 3  # some faults show only where two processes run at the same time


class Suite(conformance.Conformance, failures.FailureConformance):
    """All tests that an engine has to pass."""


@contextlib.contextmanager
def applied(mutant: mutants.Mutant) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for patch in mutant.patches:
            stack.callback(patch.apply())
        yield


async def fails(name: str, mutant: mutants.Mutant, make: Callable[[], deployments.Deployment]) -> bool:
    """Run one test of the suite with a mutant."""
    test = getattr(Suite(), name)
    async with deployments.closing(make()) as deployment:
        deployment.mutations = mutant.patches
        given = deployment if name in dir(failures.FailureConformance) else deployment.hire
        try:
            async with asyncio.timeout(TEST_S):
                await test(given)
        except Exception as failure:  # noqa: BLE001  (whatever it is, the mutant was found)
            print(f"{name}: {failure!r}")
            return True
    return False


async def is_found(mutant: mutants.Mutant, make: Callable[[], deployments.Deployment]) -> bool:
    """Whether one of the tests that are named beside the mutant fails."""
    for name in mutant.found_by * TRIES:
        if await fails(name, mutant, make):
            return True
    return False


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    until = Worker.until

    async def shorter(self: Worker, condition: Callable[[], object], what: str, within: float = PATIENCE_S) -> None:
        await until(self, condition, what, within)

    monkeypatch.setattr(Worker, "until", shorter)
    monkeypatch.setattr(waiting, "SLACK", 1.0)
    monkeypatch.setattr(failures, "MARGIN_S", PATIENCE_S)
    for module, name in (
        (local_worker, "TRIM_S"),
        (schema, "BUSY_TIMEOUT_MS"),
        (leases, "LEASE_S"),
        (leases, "LEASE_POLL_S"),
        (upkeep, "TRIM_S"),
        (scripts, "LEASE_S"),
        (redis_leases, "LEASE_POLL_S"),
    ):
        monkeypatch.setattr(module, name, getattr(module, name))  # restored after the test


@pytest.fixture(scope="module")
def cluster() -> Iterator[postgresql.Cluster]:
    with postgresql.running() as cluster:
        cluster.create("realtime")
        yield cluster


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mutant", mutants.LOCAL, ids=lambda mutant: mutant.name)
async def test_suite_finds_the_fault_in_the_local_engine(mutant: mutants.Mutant, tmp_path: Path) -> None:
    def make() -> deployments.Deployment:
        folder = tmp_path / uuid.uuid4().hex[:8]
        folder.mkdir()
        return local_deployment.LocalDeployment(folder)

    with applied(mutant):
        assert await is_found(mutant, make)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mutant", mutants.POSTGRES, ids=lambda mutant: mutant.name)
async def test_suite_finds_the_fault_in_the_postgres_engine(
    mutant: mutants.Mutant, cluster: postgresql.Cluster
) -> None:
    def make() -> deployments.Deployment:
        url = cluster.url("realtime", schema=f"log_{uuid.uuid4().hex[:12]}")
        return postgres_deployment.PostgresDeployment(cluster, url)

    with applied(mutant):
        assert await is_found(mutant, make)


@pytest.fixture(scope="module")
def server() -> Iterator[redisserver.Server]:
    with redisserver.running(*redis_deployment.OPTIONS) as server:
        yield server


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mutant", mutants.REDIS, ids=lambda mutant: mutant.name)
async def test_suite_finds_the_fault_in_the_redis_engine(mutant: mutants.Mutant, server: redisserver.Server) -> None:
    def make() -> deployments.Deployment:
        return redis_deployment.RedisDeployment(server, f"log-{uuid.uuid4().hex[:12]}")

    with applied(mutant):
        assert await is_found(mutant, make)
