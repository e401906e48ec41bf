"""The vendor's Python backend SDK (`pusher` on PyPI), configured for a server under test."""

from __future__ import annotations

from typing import Any

import pusher

from tests.harness import deployments, servers


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
