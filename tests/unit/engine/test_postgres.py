"""The PostgreSQL engine on a real server."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import AsyncIterator, Iterator

import pytest

from fanfare.engine.postgres import engine as postgres_engine
from tests.harness import postgresql
from tests.unit.engine import conformance
from tests.unit.engine.workers import Worker


@pytest.fixture(scope="module")
def cluster() -> Iterator[postgresql.Cluster]:
    with postgresql.running() as cluster:
        cluster.create("realtime")
        yield cluster


@pytest.fixture
def url(cluster: postgresql.Cluster) -> Iterator[str]:
    """A log of this test alone: a schema of its own."""
    schema = f"log_{uuid.uuid4().hex[:12]}"
    yield cluster.url("realtime", schema=schema)
    with contextlib.closing(cluster.connect("realtime")) as connection:
        connection.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE")  # type: ignore[call-overload]


@pytest.fixture
async def hire(url: str) -> AsyncIterator[conformance.Hire]:
    hired: list[Worker] = []

    async def hire() -> Worker:
        worker = Worker(postgres_engine.PostgresEngine(url))
        hired.append(worker)
        return await worker.open()

    yield hire
    for worker in hired:
        await worker.engine.close()


class TestConformance(conformance.Conformance):
    """Everything that an engine must do."""
