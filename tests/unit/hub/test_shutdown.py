"""How a response that does not end learns that its server stops: tested against the pinned uvicorn."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
import uvicorn

from fanfare.hub import transports
from tests.harness import waiting


@pytest.mark.parametrize("http", ["httptools", "h11"])
async def test_a_stopping_uvicorn_tells_an_open_response_before_it_waits_for_it(http: Any) -> None:
    told = asyncio.Event()

    async def stream(_scope: Any, _receive: Any, send: Any) -> None:
        assert transports.at_shutdown(send, told.set)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"open", "more_body": True})
        await told.wait()
        await send({"type": "http.response.body", "body": b"closed", "more_body": False})

    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(stream, log_config=None, lifespan="off", http=http))
    task = asyncio.create_task(server.serve(sockets=[listener]))

    async def started() -> bool:
        return server.started

    await waiting.until_async(started, 5, "the server runs")
    reader, writer = await asyncio.open_connection(*listener.getsockname())
    writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    await asyncio.wait_for(reader.readuntil(b"open"), 20)
    assert not told.is_set()
    server.should_exit = True
    rest = await asyncio.wait_for(reader.read(), 20)
    assert b"closed" in rest
    assert rest.endswith(b"0\r\n\r\n")
    await asyncio.wait_for(task, 20)
    assert not server.server_state.connections
    writer.close()


def test_another_server_tells_nothing() -> None:
    async def send(_message: Any) -> None: ...

    assert not transports.at_shutdown(send, lambda: None)
