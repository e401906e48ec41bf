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

from fanfare import presence, publish, testing
from fanfare.testing import live_server

pytest_plugins = ["fanfare.testing.pytest_plugin"]


def heard(socket: Any) -> tuple[str, Any]:
    frame = json.loads(socket.recv(timeout=10))
    return frame["event"], frame.get("data")


def test_events_of_the_test_reach_a_client_and_its_session_is_valid(
    fanfare_server: live_server.RunningServer,
) -> None:
    client = Client()
    client.force_login(User.objects.create_user("ann", pk=42))
    with connect(fanfare_server.socket_url) as socket:
        event, data = heard(socket)
        assert event == "pusher:connection_established"
        socket_id = json.loads(data)["socket_id"]
        cookies = f"sessionid={client.cookies['sessionid'].value}"
        form = f"socket_id={socket_id}".encode()
        ask = urllib.request.Request(
            fanfare_server.url("/pusher/user-auth"),
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
        assert presence.subscriber_count("orders") == 1
        publish("orders", "created", {"id": 1})
        assert heard(socket) == ("created", '{"id":1}')


def test_fixture_captures_events(fanfare_events: testing.Events) -> None:
    publish("orders", "created", 1, on_commit=False)
    assert fanfare_events.names == ["created"]


def test_database_in_memory_is_refused_with_a_hint() -> None:
    with pytest.raises(ImproperlyConfigured, match="Give it a file"):
        live_server._database_url({"ENGINE": "django.db.backends.sqlite3", "NAME": "file:m?mode=memory&cache=shared"})


@pytest.mark.parametrize(
    ("host", "port", "user"), [("db.example.com", "5433", "me"), ("/run/postgresql", "", ""), ("", "", "a@b:c/d")]
)
def test_database_settings_survive_as_a_url(host: str, port: str, user: str) -> None:
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
