"""Python SDKs: `pusher`, the vendor's for backends, configured for a server under test, and Pysher, a subscriber."""

from __future__ import annotations

from typing import Any

import pusher
import pysher

from tests.harness import deployments, servers

PATIENCE_S = 30.0


def client(server: servers.Server, application: deployments.Application | None = None, **options: Any) -> pusher.Pusher:
    """`options`: further arguments of the SDK's constructor."""
    credentials = application or server.application
    return pusher.Pusher(
        app_id=credentials.id,
        key=credentials.key,
        secret=credentials.secret,
        host=servers.HOST,
        port=server.port,
        ssl=False,
        timeout=15,
        **options,
    )


def close_pysher(subscriber: pysher.Pusher) -> None:
    """Close cleanly. Pysher's `disconnect` closes the socket while its thread reads from it, and waits for that thread,
    which notices the close after up to 100 seconds."""
    connection = subscriber.connection
    if not connection.is_alive():
        return
    websocket = connection.socket.sock
    transport = websocket.sock
    connection.disconnect_called = True
    websocket.send_close()
    connection.join(PATIENCE_S)
    transport.close()  # the library does not close it
    assert not connection.is_alive(), "the server did not answer the close"
