"""The server's log contains no secrets."""

from __future__ import annotations

import re

from tests.harness import sdk, servers, sockets


async def test_log_contains_no_signature_and_no_resume_token(server: servers.Server) -> None:
    """A reader of the log could repeat a request with its signature, or take over a session with its token."""
    start = server.log_size()
    token = "a-token-of-a-page-0123456789"
    sdk.client(server).trigger("news", "e", {"n": 1})
    url = server.socket_url().replace("/app/", f"/s/{token}/app/")
    async with sockets.connect(server, url=url) as socket:
        await socket.subscribe("news")
    text = server.log_text(start)
    assert re.search("auth_signature=[0-9a-f]", text) is None
    assert token not in text
    assert "/app/" in text, "the log has the connection"
