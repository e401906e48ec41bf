"""Fanfare below a path: a root path that the server or Django is configured with, behind a proxy that strips it or
keeps it, and a URL prefix of its own.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness import calls, deployments, servers, signing, sockets

ROOT = "/rt"
FORCED = "from myproject.settings import *\nFORCE_SCRIPT_NAME = '/rt'\n"


@pytest.fixture(scope="module", params=["uvicorn --root-path", "daphne --root-path", "FORCE_SCRIPT_NAME"])
def server(
    request: pytest.FixtureRequest, fleet: servers.Fleet, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[servers.Server]:
    with pytest.MonkeyPatch.context() as patch:
        name = request.param.partition(" ")[0] if "--" in request.param else "uvicorn"
        if "--" in request.param:
            original = servers.COMMANDS[name]
            patch.setitem(servers.COMMANDS, name, lambda port: [*original(port), "--root-path", ROOT])
            deployment = fleet.deployment(FANFARE_DEBUG="1")
        else:
            folder = tmp_path_factory.mktemp("forced")
            (folder / "forced_settings.py").write_text(FORCED)
            deployment = fleet.deployment(DJANGO_SETTINGS_MODULE="forced_settings", FANFARE_DEBUG="1")
            _add_path(deployment, folder)
        server = fleet.start(name, deployment)
        yield server
        server.stop()


def _add_path(deployment: deployments.Deployment, folder: Path) -> None:
    """`Server` sets PYTHONPATH to the project's apps; this folder comes after them."""
    environment = deployment.environment

    def with_folder(**more: str) -> dict[str, str]:
        found = environment(**more)
        paths = [found.get("PYTHONPATH", ""), str(folder), str(deployments.REPOSITORY)]
        return {**found, "PYTHONPATH": ":".join(filter(None, paths))}

    deployment.environment = with_folder  # type: ignore[method-assign]


@pytest.fixture(params=["", ROOT], ids=["stripped", "kept"])
def sent(request: pytest.FixtureRequest) -> str:
    """What the proxy leaves of the prefix."""
    return str(request.param)


@pytest.fixture
def caller(server: servers.Server) -> Iterator[calls.Caller]:
    with calls.Caller(server) as found:
        yield found


@pytest.mark.parametrize("signed", ["", ROOT], ids=["signed without", "signed with"])
def test_signature_is_verified_over_the_path_as_sent_or_as_stripped(
    server: servers.Server, caller: calls.Caller, sent: str, signed: str
) -> None:
    route = f"/apps/{server.application.id}/events"
    body = json.dumps({"name": "e", "channels": ["news"], "data": "{}"}).encode()
    query = signing.path(server.application, "POST", signed + route, body).partition("?")[2]
    assert caller.call("POST", f"{sent}{route}?{query}", body).status == 200


@pytest.mark.parametrize("path", ["/health/live", "/health/ready", "/api/openapi.json"])
def test_pages_without_a_signature_answer(caller: calls.Caller, sent: str, path: str) -> None:
    assert caller.call("GET", sent + path).status == 200


def test_unsigned_request_is_refused_by_the_api(server: servers.Server, caller: calls.Caller, sent: str) -> None:
    answer = caller.call("POST", f"{sent}/apps/{server.application.id}/events", b"{}")
    assert (answer.status, answer.body["code"]) == (401, "missing_parameter")


async def test_socket_and_event_stream_get_events(
    server: servers.Server, sent: str, name: Callable[[str], str]
) -> None:
    channel = name("news")
    url = server.socket_url().replace("/app/", f"{sent}/app/")
    async with sockets.connect(server, url=url) as socket:
        await socket.subscribe(channel)
        await asyncio.to_thread(calls.publish, server, channel, "hello", "{}")
        await socket.expect("hello", channel)
    with calls.Caller(server) as caller:
        assert caller.call("HEAD", f"{sent}/sse/{server.application.key}?channels={channel}").status == 200


def test_landing_page_names_the_prefix_and_its_links_lead_on(server: servers.Server, sent: str) -> None:
    text = _page(server, f"{sent}/")
    assert '"wsPath": "/rt"' in text
    (stylesheet,) = re.findall(r'href="(/[^"]+landing\.css)"', text)
    assert stylesheet == "/rt/static/fanfare/landing.css"
    assert ".hero" in _page(server, sent + stylesheet.removeprefix(ROOT))
    assert 'href="/rt/admin/"' in text


def _page(server: servers.Server, path: str) -> str:
    import http.client

    connection = http.client.HTTPConnection(servers.HOST, server.port, timeout=15)
    connection.request("GET", path)
    response = connection.getresponse()
    assert response.status == 200, path
    text = response.read().decode()
    connection.close()
    return text


# -- a URL prefix ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prefixed(fleet: servers.Fleet) -> Iterator[servers.Server]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(servers.Server, "is_ready", _is_ready_below_the_prefix)
        server = fleet.start("uvicorn", fleet.deployment(FANFARE_URL_PREFIX="/realtime/", FANFARE_DEBUG="1"))
    yield server
    server.stop()


def _is_ready_below_the_prefix(server: servers.Server) -> bool:
    try:
        return server.health("/realtime/health/ready")[0] == 200
    except (OSError, ValueError):
        return False


@pytest.mark.parametrize("sent", ["", "/realtime"], ids=["at the root", "below the prefix"])
@pytest.mark.parametrize("signed", ["", "/realtime"], ids=["signed without", "signed with"])
def test_sdks_publish_with_the_prefix_and_without_it(prefixed: servers.Server, sent: str, signed: str) -> None:
    route = f"/apps/{prefixed.application.id}/events"
    body = json.dumps({"name": "e", "channels": ["news"], "data": "{}"}).encode()
    query = signing.path(prefixed.application, "POST", signed + route, body).partition("?")[2]
    with calls.Caller(prefixed) as caller:
        assert caller.call("POST", f"{sent}{route}?{query}", body).status == 200


@pytest.mark.parametrize("prefix", ["", "/realtime"])
async def test_sockets_connect_with_the_prefix_and_without_it(prefixed: servers.Server, prefix: str) -> None:
    async with sockets.connect(prefixed, url=prefixed.socket_url().replace("/app/", f"{prefix}/app/")) as socket:
        await socket.subscribe("news")
    assert '"wsPath": "/realtime"' in _page(prefixed, "/")
