from __future__ import annotations

import functools
import uuid
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from fanfare.engine import current, interface
from fanfare.engine.local import engine
from fanfare.engine.postgres import engine as postgres_engine
from fanfare.engine.redis import engine as redis_engine
from tests.harness import postgresql, redisserver
from tests.unit.channel_layer import processes


@pytest.fixture(scope="session")
def cluster() -> Iterator[postgresql.Cluster]:
    with postgresql.running() as cluster:
        cluster.create("realtime")
        yield cluster


@pytest.fixture(scope="session")
def store() -> Iterator[redisserver.Server]:
    with redisserver.running() as server:
        yield server


@pytest.fixture
def make_engine(request, tmp_path) -> Callable[[], interface.Engine]:
    """Makes engines of one deployment. A test module may parametrize it with `postgres` and `redis`."""
    kind, own = getattr(request, "param", "local"), f"log_{uuid.uuid4().hex[:12]}"
    if kind == "postgres":
        url = request.getfixturevalue("cluster").url("realtime", schema=own)
        return functools.partial(postgres_engine.PostgresEngine, url)
    if kind == "redis":
        return functools.partial(redis_engine.RedisEngine, request.getfixturevalue("store").url(prefix=own))
    return functools.partial(engine.LocalEngine, tmp_path / "engine")


@pytest.fixture
async def process(make_engine, monkeypatch) -> AsyncIterator[Callable[[], processes.Process]]:
    """Creates simulated processes that share a log; the fixture closes their engines."""
    monkeypatch.setattr(current, "_make", make_engine)
    monkeypatch.setattr(current, "_engine", None)
    made: list[processes.Process] = []

    def make() -> processes.Process:
        made.append(processes.Process())
        return made[-1]

    yield make
    for one in made:
        await one.transport.close()
    await current.current().close()


@pytest.fixture
async def layer(process):
    """A layer in a receiving process."""
    layer = process().layer(capacity=3)
    await layer.new_channel()
    return layer
