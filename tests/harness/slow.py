"""A subscriber that stops reading from its socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

from tests.harness import servers, signing, wire

RECEIVE_BUFFER = 4_096  # bytes: the kernel buffers little, so the server notices soon


@contextlib.asynccontextmanager
async def stalled_member(server: servers.Server, channel: str, user_id: str) -> AsyncIterator[int]:
    """A presence member that never reads after its subscription succeeded; its local port."""
    connection = await asyncio.to_thread(_join, server, channel, user_id)
    with connection:
        yield connection.local_port


def _join(server: servers.Server, channel: str, user_id: str) -> wire.Wire:
    target = f"/app/{server.application.key}?protocol=7"
    connection = wire.Wire(server.port, target, receive_buffer=RECEIVE_BUFFER)
    established = connection.receive()
    assert established is not None
    socket_id = json.loads(json.loads(established.payload)["data"])["socket_id"]
    member = json.dumps({"user_id": user_id})
    auth = signing.subscription(server.application, socket_id, channel, member)
    data = {"channel": channel, "auth": auth, "channel_data": member}
    frame = json.dumps({"event": "pusher:subscribe", "data": data}).encode()
    connection.send(wire.WireFrame(wire.TEXT, frame))
    succeeded = connection.receive()
    assert succeeded is not None
    assert b"pusher_internal:subscription_succeeded" in succeeded.payload, succeeded
    return connection
