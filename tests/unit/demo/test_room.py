from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from django.test import Client
from django.utils.dateparse import parse_datetime

from demo import channels, views
from fanfare import Member, presence, testing
from fanfare.applications import models
from fanfare.engine import current
from fanfare.engine.errors import EngineUnavailable
from fanfare.integration import target
from myproject.management.commands import setup
from tests.unit.applications import fakes
from tests.unit.docs import pages

ROOM = "/demo/"
ANN = "/demo/?guest=amber-harp"
MESSAGES = "/demo/messages/"


@pytest.mark.usefixtures("events")
class TestThePage:
    def test_contains_the_key_and_guest_but_no_secret(self, client: Client) -> None:
        response = client.get(ANN)
        assert response.status_code == 200
        assert "no-store" in response.headers["Cache-Control"]
        assert "csrftoken" in response.cookies
        page = response.content.decode()
        assert f'"key": "{target.IN_TESTS.key}"' in page
        assert '"params": {"guest": "amber-harp"}' in page
        assert "secret" not in page
        assert "Amber Harp" in page

    def test_has_no_inline_script_or_style(self, client: Client) -> None:
        page = client.get(ANN).content.decode()
        assert "style=" not in page
        assert "<style" not in page
        scripts = page.split("<script")[1:]
        assert scripts
        assert all('type="application/json"' in script or " src=" in script.partition(">")[0] for script in scripts)

    @pytest.mark.parametrize("address", [ROOM, "/demo/?guest=", "/demo/?guest=unknown", "/demo/?guest=Amber Harp"])
    def test_redirects_to_a_guest_name_without_a_valid_one(self, client: Client, address: str) -> None:
        response = client.get(address)
        assert response.status_code == 302
        path, _, guest = response.headers["Location"].partition("?guest=")
        assert path == ROOM
        assert guest in channels.GUESTS
        assert channels.GUESTS[guest] in client.get(response.headers["Location"]).content.decode()

    def test_chooses_a_guest_name_that_no_member_has(self, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        first, *others = channels.GUESTS
        monkeypatch.setattr(presence, "members", lambda channel: [Member(guest) for guest in others])
        assert client.get(ROOM).headers["Location"] == f"{ROOM}?guest={first}"

    def test_chooses_a_guest_name_also_if_all_are_taken(self, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(presence, "members", lambda channel: [Member(guest) for guest in channels.GUESTS])
        assert client.get(ROOM).status_code == 302

    def test_is_a_503_with_the_reason_if_the_log_cannot_be_read(
        self, client: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def unavailable(channel: str) -> list[Member]:
            raise EngineUnavailable("The log cannot be read.")

        monkeypatch.setattr(views.presence, "members", unavailable)
        response = client.get(ANN)
        assert response.status_code == 503
        assert b"The log cannot be read." in response.content


@pytest.mark.django_db
def test_room_without_an_application_names_createapplication(client: Client) -> None:
    target.forget()
    with current.replaced(fakes.Log()):  # type: ignore[arg-type]
        response = client.get(ROOM)
    assert response.status_code == 503
    assert b"createapplication" in response.content


# -- messages ----------------------------------------------------------------------------------------------------------


def test_message_is_published(client: Client, events: testing.Events) -> None:
    response = client.post(MESSAGES, {"guest": "amber-harp", "text": " Hello "})
    assert (response.status_code, response.content) == (204, b"")
    [event] = events
    assert (event.channel, event.name) == ("presence-demo", "message")
    assert parse_datetime(event.data.pop("at"))
    assert event.data.pop("id")
    assert event.data == {"guest": "amber-harp", "name": "Amber Harp", "text": "Hello"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [("", "required"), ("   ", "required"), ("x" * 501, "500 characters (it has 501)"), ("a\0b", "Null")],
)
def test_invalid_message_gets_the_reason(client: Client, events: testing.Events, text: str, reason: str) -> None:
    response = client.post(MESSAGES, {"guest": "amber-harp", "text": text})
    assert response.status_code == 400
    assert reason in response.json()["error"]
    assert not events


@pytest.mark.parametrize("guest", ["", "unknown"])
def test_message_of_an_unknown_guest_is_refused(client: Client, events: testing.Events, guest: str) -> None:
    assert client.post(MESSAGES, {"guest": guest, "text": "Hello"}).status_code == 400
    assert not events


def test_message_that_is_tried_again_is_published_once(client: Client, events: testing.Events) -> None:
    for _ in range(2):
        assert client.post(MESSAGES, {"guest": "amber-harp", "text": "Hello", "id": "0a"}).status_code == 204
    assert {event.data["id"] for event in events} == {"0a"}
    assert len({event.idempotency_key for event in events}) == 1


# -- kill a worker -----------------------------------------------------------------------------------------------------


def test_only_a_developer_may_kill_a_worker(client: Client, settings: Any) -> None:
    form, here = {"socket_id": "1.2"}, {"HTTP_HOST": "127.0.0.1"}
    assert client.post("/demo/kill/", form, **here).status_code == 403
    settings.DEBUG = True
    assert client.get("/demo/kill/", **here).status_code == 405
    assert client.post("/demo/kill/", form, HTTP_X_FORWARDED_FOR="127.0.0.1", **here).status_code == 403
    assert client.post("/demo/kill/", form, REMOTE_ADDR="192.0.2.1", **here).status_code == 403
    assert Client(enforce_csrf_checks=True).post("/demo/kill/", form, **here).status_code == 403


@pytest.mark.usefixtures("events")
def test_the_only_worker_is_not_killed(client: Client, settings: Any) -> None:
    settings.DEBUG = True
    with current.replaced(fakes.Log()):  # type: ignore[arg-type]
        response = client.post("/demo/kill/", {"socket_id": "1.2"}, HTTP_HOST="127.0.0.1")
    assert response.status_code == 409
    assert "gunicorn -w 4" in response.json()["error"]


# -- authorization -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("events")
def test_guest_may_join_with_its_name(client: Client) -> None:
    form = {"socket_id": "1.2", "channel_name": "presence-demo", "guest": "amber-harp"}
    response = client.post("/pusher/auth", form)
    assert json.loads(response.json()["channel_data"]) == {"user_id": "amber-harp", "user_info": {"name": "Amber Harp"}}
    assert client.post("/pusher/auth", {**form, "guest": "unknown"}).status_code == 403


def test_there_are_more_guest_names_than_members_of_a_channel() -> None:
    assert len(channels.GUESTS) > target.IN_TESTS.limits.max_presence_members


@pytest.mark.django_db
def test_setup_creates_a_history_rule_for_the_room() -> None:
    setup.create_application()
    rule = models.ChannelRule.objects.get()
    assert rule.problems() == {}
    assert rule.pattern == channels.ROOM
    assert rule.rewind_count == rule.history_size > 0


# -- FANFARE_DEMO ------------------------------------------------------------------------------------------------------

ASK = """
import json
from django.test import Client
from fanfare.integration import rules
from fanfare import testing
client = Client(raise_request_exception=False)
with testing.captured_events():
    print(json.dumps([
        client.get("/demo/?guest=amber-harp").status_code == 200,
        b'href="/demo/"' in client.get("/").content,
        rules.registered.find("presence-demo") is not None,
        [client.get(path).status_code for path in ("/", "/docs/start/", "/api/docs", "/admin/login/", "/nothing")],
    ]))
"""


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, True),
        ({"FANFARE_DEMO": "0"}, False),
        ({"FANFARE_DEBUG": "1", "FANFARE_DEMO": "0"}, False),
    ],
    ids=["by default", "turned off", "turned off in debug"],
)
def test_demo_setting_adds_or_removes_page_link_and_rule(
    tmp_path: Path, environment: dict[str, str], expected: bool
) -> None:
    """All other pages work with the demo and without."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("FANFARE_", "DJANGO_"))}
    own = {"FANFARE_ENV_FILE": os.devnull, "FANFARE_DATA_DIR": str(tmp_path), "FANFARE_ALLOWED_HOSTS": "testserver"}
    done = subprocess.run(
        [sys.executable, "manage.py", "shell", "--no-imports", "-c", ASK],
        cwd=pages.ROOT,
        env={**inherited, **own, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout.strip().splitlines()[-1]) == [expected] * 3 + [[200] * 4 + [404]]
