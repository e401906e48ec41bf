"""Limits for the bodies of requests to Django's pages."""

from __future__ import annotations

import asyncio
import collections
import logging
from collections.abc import Iterator

import pytest
from django.core.handlers.asgi import ASGIHandler
from django.test import override_settings

from fanfare.server import request_bodies


class Application:
    """Reads the whole body, and answers with its size."""

    def __init__(self) -> None:
        self.messages = []

    async def __call__(self, scope, receive, send):
        size = 0
        while True:
            message = await receive()
            self.messages.append(message["type"])
            if message["type"] == "http.disconnect":
                break
            size += len(message["body"])
            if not message.get("more_body"):
                break
        body = str(size).encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})


class Client:
    def __init__(self, application=None, **options):
        self.application = application or Application()
        self.counters = collections.Counter()
        options = {"max_bytes": 1_000} | options
        self.bodies = request_bodies.RequestBodies(
            self.application, count=lambda name: self.counters.update([name]), **options
        )
        self.received = 0

    async def post(self, *chunks, path="/", headers=None, stalls_s=None):
        """The status and the body of the answer. `stalls_s`: pause before each chunk."""
        sent = []
        waiting = list(chunks)
        if headers is None:
            headers = [(b"content-length", str(sum(map(len, chunks))).encode())]

        async def receive():
            if stalls_s is not None:
                await asyncio.sleep(stalls_s)
            if not waiting:
                await asyncio.Event().wait()
            self.received += 1
            chunk = waiting.pop(0)
            return {"type": "http.request", "body": chunk, "more_body": bool(waiting)}

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "client": ("192.0.2.1", 1)}
        await self.bodies(scope, receive, send)
        start, *rest = sent
        self.headers = dict(start["headers"])
        return start["status"], b"".join(message.get("body", b"") for message in rest)


CHUNKED = [(b"transfer-encoding", b"chunked")]


async def test_body_within_the_limit_passes():
    assert await Client().post(b"x" * 600, b"x" * 400) == (200, b"1000")


async def test_declared_body_over_the_limit_is_refused_unread_with_both_numbers():
    client = Client()
    status, body = await client.post(b"x" * 1_001)
    assert (status, client.received) == (413, 0)
    assert b"1001 bytes; 1000 are allowed" in body
    assert client.headers[b"connection"] == b"close"
    assert client.counters == {"http.refused.body_bytes": 1}
    assert client.application.messages == []


async def test_undeclared_body_over_the_limit_is_refused_while_it_arrives():
    client = Client()
    status, body = await client.post(*[b"x" * 400] * 100, headers=CHUNKED)
    assert (status, client.received) == (413, 3)
    assert b"1200 bytes; 1000 are allowed" in body
    assert client.application.messages[-1] == "http.disconnect"


async def test_without_a_limit_any_body_passes():
    assert await Client(max_bytes=0).post(b"x" * 5_000_000, headers=CHUNKED) == (200, b"5000000")


@pytest.mark.parametrize("max_bytes", [0, 100_000_000])
async def test_forms_of_fanfare_have_a_limit_of_their_own(max_bytes):
    client = Client(max_bytes=max_bytes)
    status, body = await client.post(b"x" * (request_bodies.FORM_BYTES + 1), path="/pusher/auth")
    assert status == 413
    assert str(request_bodies.FORM_BYTES).encode() in body


async def test_stalled_body_times_out_with_408():
    client = Client(grace_s=0.05)
    status, body = await client.post(b"x", b"x", stalls_s=10)
    assert status == 408
    assert b"1000 a second" in body
    assert client.counters == {"http.refused.body_timeout": 1}


async def test_dripping_body_times_out_with_408():
    client = Client(grace_s=0.1)
    status, _ = await client.post(*[b"x"] * 100, stalls_s=0.01)
    assert status == 408
    assert client.received < 100


async def test_slow_body_that_makes_progress_is_awaited():
    assert await Client(grace_s=0.1).post(*[b"x" * 40] * 20, stalls_s=0.01) == (200, b"800")


async def test_request_without_a_body_passes_unchanged():
    seen = []

    async def application(scope, receive, send):
        seen.append((receive, send))

    bodies = request_bodies.RequestBodies(application, max_bytes=1, count=lambda name: None)
    receive, send = object(), object()
    await bodies({"type": "http", "path": "/", "headers": []}, receive, send)
    await bodies({"type": "http", "path": "/", "headers": [(b"content-length", b"0")]}, receive, send)
    await bodies({"type": "websocket", "path": "/"}, receive, send)
    assert seen == [(receive, send)] * 3


async def test_refusals_are_one_line_in_the_log(caplog):
    client = Client()
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            await client.post(b"x" * 1_001)
    assert len([record for record in caplog.records if record.name == request_bodies.__name__]) <= 1
    assert client.counters["http.refused.body_bytes"] == 5


@pytest.fixture
def folder(tmp_path) -> Iterator[object]:
    with override_settings(FILE_UPLOAD_TEMP_DIR=str(tmp_path), FILE_UPLOAD_MAX_MEMORY_SIZE=1_000):
        yield tmp_path


async def test_django_leaves_nothing_in_the_temporary_folder(folder):
    client = Client(ASGIHandler(), max_bytes=10_000)
    status, _ = await client.post(*[b"x" * 4_000] * 10, headers=CHUNKED, path="/nowhere/")
    assert status == 413
    assert list(folder.iterdir()) == []
