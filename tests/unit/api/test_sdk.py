"""The vendor's Python library against a real server: its own requests, escaping, signatures and connections."""

from __future__ import annotations

import base64
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import cast

import pusher
import pytest
import uvicorn
from pusher.errors import PusherBadAuth, PusherBadRequest, PusherBadStatus

from fanfare.api import asgi
from fanfare.applications import registry
from fanfare.engine import interface
from fanfare.hub import hub as hubs
from tests.unit.api import fakes

STARTUP_SECONDS = 10


@pytest.fixture
def port(hub: fakes.Hub, applications: registry.Registry) -> Iterator[int]:
    """Where uvicorn serves the API, with the true time."""
    api = asgi.Api(cast("hubs.Hub", hub), applications)
    server = uvicorn.Server(uvicorn.Config(api, lifespan="off", ws="none", log_level="warning", access_log=False))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        deadline = time.monotonic() + STARTUP_SECONDS
        while not server.started:
            assert thread.is_alive(), "uvicorn did not start"
            assert time.monotonic() < deadline, "uvicorn did not start in time"
            time.sleep(0.01)
        yield listener.getsockname()[1]
        server.should_exit = True
        thread.join(STARTUP_SECONDS)
        assert not thread.is_alive()


def library(port: int, **changed: str) -> pusher.Pusher:
    options = {"app_id": "3", "key": fakes.APPLICATION.key, "secret": fakes.APPLICATION.secret, **changed}
    return pusher.Pusher(host="127.0.0.1", port=port, ssl=False, **options)


@pytest.fixture
def sdk(port: int) -> Iterator[pusher.Pusher]:
    client = library(port)
    yield client
    client._pusher_client.http.session.close()


def test_sdk_triggers_an_event(sdk: pusher.Pusher, hub: fakes.Hub) -> None:
    assert sdk.trigger(["news", "a@,;=.b"], "created", {"title": "Ärger, 日本"}, "12.34") == {}
    assert [frame["channel"] for frame in hub.frames] == ["news", "a@,;=.b"]
    assert json.loads(hub.frames[0]["data"]) == {"title": "Ärger, 日本"}
    assert hub.published[0][0].exclude == "12.34"


def test_sdk_triggers_a_batch(sdk: pusher.Pusher, hub: fakes.Hub) -> None:
    assert sdk.trigger_batch([{"channel": "a", "name": f"e{n}", "data": {"n": n}} for n in range(3)]) == {}
    assert [frame["event"] for frame in hub.frames] == ["e0", "e1", "e2"]


def test_sdk_sends_to_a_user(sdk: pusher.Pusher, hub: fakes.Hub) -> None:
    assert sdk.send_to_user("ann", "created", "x") == {}
    assert hub.frames == [{"event": "created", "channel": "#server-to-user-ann", "data": "x"}]


def test_sdk_terminates_a_users_connections(sdk: pusher.Pusher, hub: fakes.Hub) -> None:
    """It sends that to a path without the application's id."""
    assert sdk.terminate_user_connections("ann@example") == {}
    assert json.loads(hub.commands[0].body)["user_id"] == "ann@example"


def test_sdk_queries_channels_a_channel_and_its_users(sdk: pusher.Pusher, hub: fakes.Hub) -> None:
    """All of them are GETs that sign the MD5 of an empty body."""
    hub.engine.counts = {"presence-a@,;=.b": interface.ChannelCounts(3, 2)}
    hub.engine.joined = {"presence-a@,;=.b": [interface.Member("ann", "null")]}
    counted = {"user_count": 2, "subscription_count": 3}
    attributes = ["user_count", "subscription_count"]
    assert sdk.channels_info() == {"channels": {"presence-a@,;=.b": {}}}
    assert sdk.channels_info("presence-", attributes) == {"channels": {"presence-a@,;=.b": counted}}
    assert sdk.channel_info("presence-a@,;=.b", attributes) == {"occupied": True, **counted}
    assert sdk.users_info("presence-a@,;=.b") == {"users": [{"id": "ann"}]}


def test_sdk_raises_its_typed_errors(sdk: pusher.Pusher, port: int, hub: fakes.Hub) -> None:
    with pytest.raises(PusherBadRequest, match="user_count"):
        sdk.channels_info(attributes=["user_count"])
    hub.engine.down = "the disk is full"
    with pytest.raises(PusherBadStatus, match=r"503: .*the disk is full"):
        sdk.trigger("news", "created", "x")
    wrong = library(port, secret="wrong")
    with pytest.raises(PusherBadAuth, match="Invalid signature"):
        wrong.trigger("news", "created", "x")
    wrong._pusher_client.http.session.close()


def test_encrypted_data_of_the_sdk_is_relayed(port: int, hub: fakes.Hub) -> None:
    client = library(port, encryption_master_key_base64=base64.b64encode(bytes(32)).decode())
    client.trigger("private-encrypted-a", "created", {"seen": "by nobody"})
    client._pusher_client.http.session.close()
    assert set(json.loads(hub.frames[0]["data"])) == {"nonce", "ciphertext"}


def test_one_connection_serves_accepted_and_refused_requests_in_turn(port: int, hub: fakes.Hub) -> None:
    """A refusal before the body is read must not take the body for the next request."""
    body = json.dumps({"name": "created", "channel": "news", "data": "x" * 50_000}).encode()
    too_large = b" " * 1_000_000
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.connect()
    own_port = connection.sock.getsockname()[1]
    for _ in range(3):
        now = str(int(time.time()))
        for target, content, status in [
            (fakes.signed("POST", "/apps/3/events", body, auth_timestamp=now), body, 200),
            ("/apps/3/events?auth_key=wrong", body, 401),
            (fakes.signed("POST", "/apps/3/events", too_large, auth_timestamp=now), too_large, 413),
            (fakes.signed("GET", "/apps/3/channels", auth_timestamp=now), b"", 200),
        ]:
            connection.request("POST" if content else "GET", target, content or None)
            response = connection.getresponse()
            response.read()
            assert response.status == status
            assert connection.sock.getsockname()[1] == own_port
    connection.close()
    assert len(hub.frames) == 3
