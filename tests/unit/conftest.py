"""Engines of each kind, for the tests of what is built on them."""

from __future__ import annotations

import functools
import uuid
from collections.abc import Callable, Iterator

import pytest

from fanfare.engine import interface
from fanfare.engine.local import engine
from fanfare.engine.postgres import engine as postgres_engine
from fanfare.engine.redis import engine as redis_engine
from tests.harness import postgresql, redisserver


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
