"""The lines of a server's log: their format, and what they must not hold."""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Callable

import pytest

from fanfare.runtime import log_throttle
from tests.harness import calls, sdk, servers, sockets, waiting

LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} \[\d+\] [A-Z]+ [\w.]+: .+")


async def test_log_holds_no_signature_and_no_resume_token(server: servers.Server) -> None:
    """A signed request could be sent again for ten minutes, and a token takes a page's place."""
    start = server.log_size()
    token = "a-token-of-a-page-0123456789"
    sdk.client(server).trigger("news", "e", {"n": 1})
    url = server.socket_url().replace("/app/", f"/s/{token}/app/")
    async with sockets.connect(server, url=url) as socket:
        await socket.subscribe("news")
    text = server.log_text(start)
    assert re.search("auth_signature=[0-9a-f]", text) is None
    assert token not in text
    assert "/app/" in text, "the connection itself is in the log"


@pytest.mark.parametrize("name", ["uvicorn", "four_workers"])
def test_all_lines_have_one_format(request: pytest.FixtureRequest, name: str) -> None:
    server: servers.Server = request.getfixturevalue(name)
    with calls.Caller(server) as caller:
        caller.call("GET", "/health/ready")
    lines = server.log_text().splitlines()
    assert lines
    assert [line for line in lines if LINE.fullmatch(line) is None] == []


@pytest.mark.parametrize("command", ["uvicorn", "gunicorn pair"])
def test_all_lines_are_json_objects_with_the_same_fields(
    start: Callable[..., servers.Server], fleet: servers.Fleet, command: str
) -> None:
    server = start(command, fleet.deployment(FANFARE_LOG_FORMAT="json"))
    server.stop()
    lines = [json.loads(line) for line in server.log_text().splitlines()]
    assert lines
    assert [line for line in lines if not {"time", "level", "logger", "process", "message"} <= set(line)] == []


def test_line_of_a_request_has_the_id_that_the_proxy_sent(uvicorn: servers.Server) -> None:
    start = uvicorn.log_size()
    with calls.Caller(uvicorn) as caller:
        caller.call("GET", "/health/ready", headers={"X-Request-ID": "of-the-proxy-1"})
    waiting.until(lambda: "[request=of-the-proxy-1]" in uvicorn.log_text(start), 30, "the request's line")


def test_static_files_have_no_line(server: servers.Server) -> None:
    start = server.log_size()
    connection = http.client.HTTPConnection(servers.HOST, server.port, timeout=15)
    for path in ("/static/fanfare/site.css", "/static/fanfare/site.css", "/static/fanfare/logo.svg"):
        connection.request("GET", path)
        response = connection.getresponse()
        response.read()
        assert response.status == 200
    connection.close()
    assert "/static/" not in server.log_text(start)


def test_flood_of_refused_requests_is_some_lines(server: servers.Server) -> None:
    """404s, and wrong Host headers, for each of which Django would log a traceback."""
    workers = len(server.workers())
    start = server.log_size()
    connection = http.client.HTTPConnection(servers.HOST, server.port, timeout=15)
    for headers in ({}, {"Host": "not allowed"}):
        for _ in range(200):
            connection.request("GET", "/no/such/page", headers=headers)
            response = connection.getresponse()
            response.read()
            assert response.status in (400, 404)
    connection.close()
    text = server.log_text(start)
    assert "Traceback" not in text
    lines = [line for line in text.splitlines() if " - - [" not in line]  # Daphne's own access log has no logger
    assert len(lines) <= workers * 4 * log_throttle.ThrottledRefusals.BURST
