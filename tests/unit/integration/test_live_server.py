"""The fixtures of a project's tests, and the server behind one of them."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.exceptions import ImproperlyConfigured
from django.test import Client
from websockets.sync.client import connect

from fanfare import presence, publish, testing
from fanfare.integration import target
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


def test_application_of_an_earlier_test_is_not_used(
    transactional_db: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_server, "_process", lambda *_: contextlib.nullcontext())
    for number in range(2):
        (folder := tmp_path / str(number)).mkdir()
        with testing.running_server(folder) as server:
            assert target.application().id == server.application.app_id
        server.application.delete()


def test_fixture_captures_events(fanfare_events: testing.Events) -> None:
    publish("orders", "created", 1, on_commit=False)
    assert fanfare_events.names == ["created"]


def test_database_in_memory_is_refused_with_a_hint() -> None:
    with pytest.raises(ImproperlyConfigured, match="Give it a file"):
        live_server._database_name({"ENGINE": "django.db.backends.sqlite3", "NAME": "file:m?mode=memory&cache=shared"})


def test_project_in_remote_mode_is_refused(settings: Any, tmp_path: Path) -> None:
    names = ("REMOTE_URL", "REMOTE_APP_ID", "REMOTE_KEY", "REMOTE_SECRET")
    settings.FANFARE = dict(zip(names, ("https://realtime.example.com", "1", "key", "secret"), strict=True))
    with pytest.raises(ImproperlyConfigured, match="publishes to the deployment of FANFARE_REMOTE_URL"):
        testing.running_server(tmp_path).__enter__()


# -- a project of its own ----------------------------------------------------------------------------------------------

PROJECT = {
    "shop/__init__.py": "",
    "shop/settings.py": """
from pathlib import Path

SECRET_KEY = "for this test"
ALLOWED_HOSTS = ["shop.example.com"]
INSTALLED_APPS = ["shop", "fanfare", "django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions"]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": "shop.sqlite3",
        "TEST": {"NAME": Path(__file__).parent.parent / "test.sqlite3"},
    }
}
ROOT_URLCONF = "shop.urls"
STATIC_URL = "/static/"
FANFARE = {"URL_PREFIX": "/realtime/", "ENGINE": "local"}
""",
    "shop/urls.py": """
from django.http import HttpResponse
from django.urls import include, path

from fanfare import publish


def order(request):
    publish("orders", "created", {"by": "the server"})
    return HttpResponse("ordered")


urlpatterns = [path("order/", order), path("", include("fanfare.urls"))]
""",
    "shop/tests.py": """
import json
import tempfile
import urllib.request
from pathlib import Path

from django.test import TransactionTestCase
from websockets.sync.client import connect

from fanfare import presence, publish
from fanfare.testing import running_server


class Tests(TransactionTestCase):
    def test_it(self):
        with tempfile.TemporaryDirectory() as folder, running_server(Path(folder)) as server:
            with connect(server.socket_url) as socket:
                socket.recv(10)
                socket.send(json.dumps({"event": "pusher:subscribe", "data": {"channel": "orders"}}))
                socket.recv(10)
                publish("orders", "created", {"by": "the test"})
                self.assertIn("the test", socket.recv(10))
                self.assertEqual(presence.subscriber_count("orders"), 1)
                with urllib.request.urlopen(server.url("/order/"), timeout=10) as response:
                    self.assertEqual(response.read(), b"ordered")
                self.assertIn("the server", socket.recv(10))
""",
}


# The ways to test that docs/how-to/test-your-app.md names, in several processes at once.
UNDER_PYTEST = """
import json
import urllib.request

import pytest
from django.contrib.auth.models import Group
from django.db import transaction
from django.test import LiveServerTestCase, SimpleTestCase, TestCase, TransactionTestCase
from websockets.sync.client import connect

from fanfare import apublish, publish
from fanfare.testing import captured_events


def sell(number):
    with transaction.atomic():
        Group.objects.create(name=f"order {number}")
        publish("orders", "created", number)


class Sync:
    def test_events_are_captured(self):
        with captured_events() as events:
            sell(1)
        self.assertEqual([event.data for event in events], [1])


class Async:
    async def test_events_of_a_coroutine_are_captured(self):
        with captured_events() as events:
            await apublish("orders", "created", 2)
        self.assertEqual([event.data for event in events], [2])


class Simple(Async, SimpleTestCase):
    pass


class InTestCase(Sync, Async, TestCase):
    pass


class InTransactionTestCase(Sync, Async, TransactionTestCase):
    pass


class InLiveServerTestCase(LiveServerTestCase):
    def test_events_of_the_live_servers_thread_are_captured(self):
        with captured_events() as events, urllib.request.urlopen(f"{self.live_server_url}/order/", timeout=30):
            pass
        self.assertEqual(events.names, ["created"])


@pytest.mark.django_db
@pytest.mark.parametrize("number", range(4))
def test_fixture_has_the_events_of_its_test_only(fanfare_events, number):
    publish("orders", "created", number)
    assert [event.data for event in fanfare_events] == [number]


@pytest.mark.parametrize("number", range(2))
def test_servers_of_two_processes_have_nothing_in_common(fanfare_server, number):
    with connect(fanfare_server.socket_url) as socket:
        socket.recv(60)
        socket.send(json.dumps({"event": "pusher:subscribe", "data": {"channel": "orders"}}))
        socket.recv(60)
        sell(number)
        frame = json.loads(socket.recv(60))
        assert (frame["event"], json.loads(frame["data"])) == ("created", number)
"""


def test_tests_of_a_project_run_in_several_processes(tmp_path: Path) -> None:
    """With pytest-xdist and pytest-django; LiveServerTestCase calls the project's views in a thread."""
    more = {
        "conftest.py": 'pytest_plugins = ["fanfare.testing.pytest_plugin"]\n',
        "pytest.ini": "[pytest]\nDJANGO_SETTINGS_MODULE = shop.settings\n",
        "test_shop.py": UNDER_PYTEST,
    }
    done = run_in(tmp_path, {**PROJECT, **more}, "pytest", "-n", "2", "-q", "test_shop.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "12 passed" in done.stdout, done.stdout


def test_project_without_an_asgi_module_is_served_with_its_own_settings(tmp_path: Path) -> None:
    done = run_in(tmp_path, PROJECT, "django", "test", "--parallel", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (tmp_path / "var").exists()  # nothing was written into the project's own deployment


def run_in(folder: Path, files: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("FANFARE_", "PYTEST_", "DJANGO_"))
    }
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=folder,
        env={**inherited, "DJANGO_SETTINGS_MODULE": "shop.settings", "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
