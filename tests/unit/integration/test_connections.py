"""Publishing from threads whose connections Django does not close leaves none open."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent import futures

import pytest
from asgiref.sync import sync_to_async
from django import db

from fanfare.applications import models
from fanfare.integration import publishing, target
from tests.unit.integration import recording

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _application(transactional_db: None) -> None:
    models.Application.objects.create(name="default", app_id="7", key="key-7", secret="secret-7")


@pytest.fixture
def thread() -> Iterator[futures.ThreadPoolExecutor]:
    """One of a pool that lives as long as the process, as a mounted application has."""
    with futures.ThreadPoolExecutor(1) as pool:
        yield pool
        pool.submit(db.connections.close_all).result()


def is_open() -> bool:
    return db.connection.connection is not None


def test_thread_that_publishes_leaves_no_connection_open(
    thread: futures.ThreadPoolExecutor, log: recording.Recording
) -> None:
    for _ in range(2):  # the second time the application is remembered
        thread.submit(publishing.publish, "news", "hello", {}).result()
        assert not thread.submit(is_open).result()


def test_connection_that_was_open_stays_open(thread: futures.ThreadPoolExecutor) -> None:
    def work() -> bool:
        models.Application.objects.count()
        target.forget()
        publishing.publish("news", "hello", {})
        return is_open()

    assert thread.submit(work).result()


def test_coroutine_outside_a_request_leaves_no_connection_open(log: recording.Recording) -> None:
    async def route() -> bool:
        await sync_to_async(db.connections.close_all)()  # the thread is the process's: other tests had it before
        await publishing.apublish("news", "hello", {})
        return await sync_to_async(is_open)()

    with futures.ThreadPoolExecutor(1) as pool:
        assert not pool.submit(asyncio.run, route()).result()
