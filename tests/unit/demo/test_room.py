from __future__ import annotations

import json
from typing import Any

import pytest
from django.test import Client

from apps.applications import models as applications
from apps.demo import guests, models
from tests.unit.realtime import recording

MESSAGES = "/demo/messages/"


@pytest.fixture(autouse=True)
def default(application: applications.Application) -> applications.Application:
    return application


@pytest.fixture
def ann() -> guests.Guest:
    return guests.Guest("1", "Amber Harp")


def test_the_page_has_what_its_script_needs_and_no_secret(client: Client) -> None:
    response = client.get("/demo/")
    assert response.status_code == 200
    page = response.content.decode()
    config = response.context["config"]
    assert config["key"] == "key-7"
    assert guests.recognise(config["guest"]["token"]) == (config["guest"]["id"], config["guest"]["name"])
    assert "secret-7" not in page
    assert "csrftoken" in response.cookies
    assert "no-store" in response.headers["Cache-Control"]


def test_the_page_has_no_script_or_style_of_its_own_for_a_policy_to_forbid(client: Client) -> None:
    page = client.get("/demo/").content.decode()
    assert "style=" not in page
    assert "<style" not in page
    scripts = page.split("<script")[1:]
    assert scripts
    assert all('type="application/json"' in script or " src=" in script.partition(">")[0] for script in scripts)


def test_each_window_is_a_guest_of_its_own(client: Client) -> None:
    first, second = (client.get("/demo/").context["config"]["guest"] for _ in range(2))
    assert first["id"] != second["id"]


def test_without_an_application_the_room_says_how_to_make_one(
    client: Client, application: applications.Application
) -> None:
    application.delete()
    response = client.get("/demo/")
    assert response.status_code == 503
    assert b"createapplication" in response.content


@pytest.mark.django_db(transaction=True)
def test_what_is_said_is_saved_and_published(client: Client, log: recording.Recording, ann: guests.Guest) -> None:
    response = client.post(MESSAGES, {"guest": ann.token, "text": " Hello "})
    assert response.status_code == 201
    [event] = log.events
    assert (event.channel, event.name) == ("presence-demo", "message")
    assert json.loads(event.data) == response.json() == client.get(MESSAGES).json()["messages"][0]
    assert (response.json()["author"], response.json()["text"]) == ("Amber Harp", "Hello")


@pytest.mark.parametrize(
    ("text", "reason"),
    [("", "required"), ("   ", "required"), ("x" * 501, "500 characters (it has 501)"), ("a\0b", "Null")],
)
def test_what_cannot_be_said_gets_the_reason(
    client: Client, log: recording.Recording, ann: guests.Guest, text: str, reason: str
) -> None:
    response = client.post(MESSAGES, {"guest": ann.token, "text": text})
    assert response.status_code == 400
    assert reason in response.json()["error"]
    assert log.events == []
    assert not models.Message.objects.exists()


@pytest.mark.parametrize("token", ["", "x", guests.invent().token + "x"])
def test_only_guests_of_the_room_may_speak(client: Client, token: str) -> None:
    assert client.post(MESSAGES, {"guest": token, "text": "Hello"}).status_code == 403


def test_a_window_reads_what_came_after_what_it_has(client: Client) -> None:
    rows = [models.Message.objects.create(author_id="1", author="A", text=text) for text in ("one", "two", "three")]
    later = client.get(MESSAGES, {"after": rows[0].pk}).json()["messages"]
    assert [message["text"] for message in later] == ["two", "three"]


@pytest.mark.parametrize("after", ["", "-1", "x", "9" * 19])
def test_a_wrong_position_is_refused(client: Client, after: str) -> None:
    assert client.get(MESSAGES, {"after": after}).status_code == 400


def test_only_the_newest_messages_are_kept(client: Client, ann: guests.Guest) -> None:
    old = models.Message(author_id="1", author="A", text="old")
    models.Message.objects.bulk_create([old] * 3)
    for number in range(models.KEPT_MESSAGES):
        models.Message.objects.create(author_id="1", author="A", text=str(number))
    client.post(MESSAGES, {"guest": ann.token, "text": "newest"})
    texts = list(models.Message.objects.values_list("text", flat=True))
    assert len(texts) == models.KEPT_MESSAGES
    assert (texts[0], texts[-1]) == ("1", "newest")


def test_a_guest_may_join_and_is_named(client: Client, ann: guests.Guest) -> None:
    form: dict[str, Any] = {"socket_id": "1.2", "channel_name": "presence-demo", "guest": ann.token}
    response = client.post("/pusher/auth", form)
    assert json.loads(response.json()["channel_data"]) == {"user_id": "1", "user_info": {"name": "Amber Harp"}}
    assert client.post("/pusher/auth", {**form, "guest": "somebody"}).status_code == 403
