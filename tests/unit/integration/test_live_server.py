"""The fixtures of a project's tests, and the server behind one of them."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.exceptions import ImproperlyConfigured
from django.test import Client
from websockets.sync.client import connect

from fanfare import publish
from fanfare.integration import live_server, presence, testing

pytest_plugins = ["fanfare.integration.pytest_plugin"]


def heard(socket: Any) -> tuple[str, Any]:
    frame = json.loads(socket.recv(timeout=10))
    return frame["event"], frame.get("data")


def test_what_the_test_publishes_reaches_a_client_and_sessions_are_good_there(
    realtime_server: live_server.RunningServer,
) -> None:
    client = Client()
    client.force_login(User.objects.create_user("ann", pk=42))
    with connect(realtime_server.socket_url) as socket:
        event, data = heard(socket)
        assert event == "pusher:connection_established"
        socket_id = json.loads(data)["socket_id"]
        cookies = f"sessionid={client.cookies['sessionid'].value}"
        form = f"socket_id={socket_id}".encode()
        ask = urllib.request.Request(
            realtime_server.url("/pusher/user-auth"),
            form,
            {"Cookie": f"{cookies}; csrftoken={'a' * 32}", "X-CSRFToken": "a" * 32},
        )
        with urllib.request.urlopen(ask, timeout=10) as response:
            signed = json.load(response)
        socket.send(json.dumps({"event": "pusher:signin", "data": signed}))
        assert heard(socket)[0] == "pusher:signin_success"
        socket.send(json.dumps({"event": "pusher:subscribe", "data": {"channel": "orders"}}))
        assert heard(socket)[0] == "pusher_internal:subscription_succeeded"
        assert presence.is_online(42)
        assert presence.subscribers("orders") == 1
        publish("orders", "created", {"id": 1})
        assert heard(socket) == ("created", '{"id":1}')


def test_events_are_captured_by_a_fixture(realtime_events: testing.Events) -> None:
    publish("orders", "created", 1, on_commit=False)
    assert realtime_events.names == ["created"]


def test_a_database_in_memory_is_refused_with_a_hint() -> None:
    with pytest.raises(ImproperlyConfigured, match="Give it a file"):
        live_server._database_url({"ENGINE": "django.db.backends.sqlite3", "NAME": "file:m?mode=memory&cache=shared"})


@pytest.mark.parametrize(
    ("host", "port", "user"), [("db.example.com", "5433", "me"), ("/run/postgresql", "", ""), ("", "", "a@b:c/d")]
)
def test_a_database_is_handed_on_as_it_is(host: str, port: str, user: str) -> None:
    from myproject import databases

    values = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": "test_x/y",
        "USER": user,
        "PASSWORD": "p:@/ss" if user else "",
        "HOST": host,
        "PORT": port,
        "OPTIONS": {"sslmode": "require", "pool": {"min_size": 1}},
    }
    url = live_server._database_url(values)
    parsed = databases.parse(url, default=live_server.Path("x"), base=live_server.Path())
    assert {name: parsed[name] for name in ("NAME", "USER", "PASSWORD", "HOST", "PORT")} == {
        name: values[name] for name in ("NAME", "USER", "PASSWORD", "HOST", "PORT")
    }
    assert parsed["OPTIONS"]["sslmode"] == "require"
