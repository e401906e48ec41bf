"""`/pusher/auth`, compared with the vendor's own Python library."""

from __future__ import annotations

import base64
import json
import logging
from typing import Any

import pusher
import pytest
from django.contrib.auth.models import AbstractUser, User
from django.core.exceptions import PermissionDenied
from django.db import OperationalError
from django.http import Http404, HttpRequest, HttpResponse
from django.test import Client

from fanfare import Member, channel
from fanfare.applications import models
from fanfare.integration import rules
from tests.unit.integration import oracles

SOCKET = "1234.5678"


@pytest.fixture(autouse=True)
def empty(registered: rules.RuleSet, application: models.Application) -> None:
    """Each test writes its rules, for the one application."""


@pytest.fixture
def ann(db: None) -> User:
    return User.objects.create_user("ann", pk=42)


@pytest.fixture
def oracle(application: models.Application) -> pusher.Pusher:
    return oracles.pusher_of(application.app_id, application.key, application.secret)


def ask(client: Client, name: str, socket_id: str = SOCKET, **more: Any) -> HttpResponse:
    return client.post("/pusher/auth", {"socket_id": socket_id, "channel_name": name, **more})  # type: ignore[return-value]


def code(response: HttpResponse) -> tuple[int, str]:
    return response.status_code, json.loads(response.content)["code"]


@pytest.fixture
def debug(settings: Any) -> None:
    settings.DEBUG = True


# -- Private channels --------------------------------------------------------------------------------------------------


def test_admitted_visitor_gets_the_signature_of_the_vendor_library(
    client: Client, ann: User, oracle: pusher.Pusher
) -> None:
    asked: list[tuple[Any, Any]] = []

    @channel("private-orders-{order_id:int}")
    def rule(user: AbstractUser, order_id: int) -> bool:
        asked.append((user.pk, order_id))
        return True

    client.force_login(ann)
    response = ask(client, "private-orders-7")
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "application/json"
    assert json.loads(response.content) == oracle.authenticate("private-orders-7", SOCKET)
    assert asked == [(42, 7)]


def test_encrypted_channel_is_answered_with_its_key(
    client: Client, debug: None, application: models.Application, settings: Any
) -> None:
    @channel("private-encrypted-orders-{order_id:int}")
    def rule(user: Any, order_id: int) -> bool:
        return order_id == 7

    assert code(ask(client, "private-encrypted-orders-7")) == (503, "no_master_key")
    settings.FANFARE = {"ENCRYPTION_MASTER_KEY": bytes(range(32))}
    vendor = pusher.Pusher(
        application.app_id,
        application.key,
        application.secret,
        encryption_master_key_base64=base64.b64encode(bytes(range(32))).decode(),
    )
    expected = vendor.authenticate("private-encrypted-orders-7", SOCKET)
    expected["shared_secret"] = expected["shared_secret"].decode()  # bytes, which are no JSON
    assert json.loads(ask(client, "private-encrypted-orders-7").content) == expected
    assert code(ask(client, "private-encrypted-orders-8")) == (403, "refused")


def test_database_outage_is_answered_with_503(client: Client, debug: None, caplog: pytest.LogCaptureFixture) -> None:
    @channel("private-orders")
    def rule(user: Any) -> bool:
        raise OperationalError("the pool is used up")

    assert code(ask(client, "private-orders")) == (503, "database_unavailable")
    assert "the pool is used up" in caplog.text


def test_responses_are_not_cacheable(client: Client) -> None:
    @channel("private-a")
    def rule(user: Any) -> bool:
        return True

    assert "no-store" in ask(client, "private-a").headers["Cache-Control"]
    assert "no-store" in ask(client, "private-b").headers["Cache-Control"]


def test_rule_with_a_request_parameter_gets_the_request(client: Client) -> None:
    @channel("private-a")
    def rule(user: Any, request: HttpRequest) -> bool:
        return request.POST["ticket"] == "5"

    assert ask(client, "private-a", ticket="5").status_code == 200
    assert ask(client, "private-a", ticket="6").status_code == 403


def test_rule_may_be_a_coroutine_function(client: Client, ann: User) -> None:
    @channel("private-a")
    async def rule(user: AbstractUser) -> bool:
        return await User.objects.filter(pk=user.pk).aexists()

    assert ask(client, "private-a").status_code == 403
    client.force_login(ann)
    assert ask(client, "private-a").status_code == 200


@pytest.mark.parametrize("answer", [False, None])
def test_rule_that_returns_false_or_none_refuses_with_403(client: Client, debug: None, answer: Any) -> None:
    @channel("private-a")
    def rule(user: Any) -> Any:
        return answer

    response = ask(client, "private-a")
    assert code(response) == (403, "refused")
    assert f"returned {answer}" in response.content.decode()


@pytest.mark.parametrize("error", [PermissionDenied("no"), Http404("gone"), User.DoesNotExist("nobody")])
def test_rule_that_raises_like_a_view_refuses_with_403(client: Client, debug: None, error: Exception) -> None:
    @channel("private-a")
    def rule(user: Any) -> bool:
        raise error

    assert code(ask(client, "private-a")) == (403, "refused")


def test_exception_in_a_rule_is_a_500(client: Client) -> None:
    @channel("private-a")
    def rule(user: Any) -> bool:
        raise ZeroDivisionError

    client.raise_request_exception = False
    assert ask(client, "private-a").status_code == 500


def test_missing_channel_name_is_named(client: Client, debug: None) -> None:
    response = client.post("/pusher/auth", {"socket_id": SOCKET})
    assert code(response) == (400, "channel_name")
    assert "has no channel_name" in response.content.decode()


@pytest.mark.parametrize("path", ["/pusher/auth", "/pusher/user-auth"])
def test_missing_socket_id_is_named(client: Client, debug: None, path: str) -> None:
    response = client.post(path, {"channel_name": "private-a"})
    assert code(response) == (400, "socket_id")
    assert "has no socket_id" in response.content.decode()


def test_queryset_does_not_admit_and_exists_is_named(client: Client, debug: None, ann: User) -> None:
    @channel("private-a")
    def rule(user: Any) -> Any:
        return User.objects.filter(pk=user.pk)

    response = ask(client, "private-a")
    assert code(response) == (403, "invalid_answer")
    assert ".exists()" in response.content.decode()


@pytest.mark.parametrize("answer", [1, "yes", [1], {"name": "Ann"}, Member(1)])
def test_true_object_does_not_admit_to_a_private_channel(
    client: Client, debug: None, ann: User, answer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    @channel("private-a")
    def rule(user: Any) -> Any:
        return answer

    client.force_login(ann)
    assert code(ask(client, "private-a")) == (403, "invalid_answer")
    assert any(record.levelno == logging.ERROR and "True or False" in record.getMessage() for record in caplog.records)


# -- Presence channels -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "data"),
    [
        (True, {"user_id": "42", "user_info": {"name": "ann"}}),
        ({"name": "Änn", "level": 3}, {"user_id": "42", "user_info": {"name": "Änn", "level": 3}}),
        (Member("bot-1", {"name": "Bot"}), {"user_id": "bot-1", "user_info": {"name": "Bot"}}),
        (Member(9), {"user_id": "9"}),
    ],
)
def test_presence_member_has_the_id_and_info_of_the_rule(
    client: Client, ann: User, oracle: pusher.Pusher, answer: Any, data: dict[str, Any]
) -> None:
    @channel("presence-{room}")
    def rule(user: Any, room: str) -> Any:
        return answer

    client.force_login(ann)
    response = ask(client, "presence-kitchen")
    assert response.status_code == 200
    assert json.loads(response.content) == oracle.authenticate("presence-kitchen", SOCKET, data)


def test_visitor_without_an_account_can_be_a_member(client: Client, oracle: pusher.Pusher) -> None:
    @channel("presence-a")
    def rule(user: Any) -> Member:
        return Member("guest-1", {"name": "Guest"})

    expected = oracle.authenticate("presence-a", SOCKET, {"user_id": "guest-1", "user_info": {"name": "Guest"}})
    assert json.loads(ask(client, "presence-a").content) == expected


@pytest.mark.parametrize("answer", [True, {"name": "Somebody"}])
def test_anonymous_visitor_without_an_id_is_refused(client: Client, debug: None, answer: Any) -> None:
    @channel("presence-a")
    def rule(user: Any) -> Any:
        return answer

    response = ask(client, "presence-a")
    assert code(response) == (403, "anonymous")
    assert "Member(id, info)" in response.content.decode()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("ann", "True, False, a dict or Member"),
        (Member(""), "is no id"),
        (Member("x" * 129), "129 characters; the application allows 128"),
        (Member(True), "of type bool"),
        (Member(1.5), "of type float"),  # type: ignore[arg-type]
        (Member(1, "Ann"), "or None, not str"),  # type: ignore[arg-type]
        (Member(1, {"x": object()}), "no JSON form"),
        (Member(1, {"x": "y" * 3000}), "3036 bytes.*2048"),
    ],
)
def test_invalid_member_is_refused_with_the_reason(
    client: Client, debug: None, ann: User, answer: Any, reason: str
) -> None:
    @channel("presence-a")
    def rule(user: Any) -> Any:
        return answer

    client.force_login(ann)
    response = ask(client, "presence-a")
    assert code(response) == (403, "invalid_answer")
    message = json.loads(response.content)["error"]
    for part in reason.split(".*"):
        assert part in message


# -- Requests that cannot be answered ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "socket_id", "answer"),
    [
        ("private-nobody", SOCKET, (403, "no_rule")),
        ("news", SOCKET, (403, "public_channel")),
        ("private-encrypted-a", SOCKET, (403, "no_rule")),
        ("", SOCKET, (400, "channel_name")),
        ("private-a b", SOCKET, (400, "channel_name")),
        ("#server-to-user-1", SOCKET, (400, "channel_name")),
        ("private-" + "a" * 200, SOCKET, (400, "channel_name")),
        ("private-a", "", (400, "socket_id")),
        ("private-a", "1234", (400, "socket_id")),
        ("private-a", "1.2:private-b", (400, "socket_id")),
        ("private-a", "1.2\n", (400, "socket_id")),
    ],
)
def test_malformed_request_is_refused_with_a_code(
    client: Client, debug: None, name: str, socket_id: str, answer: tuple[int, str]
) -> None:
    assert code(ask(client, name, socket_id)) == answer


def test_wide_pattern_does_not_match_an_encrypted_channel(client: Client, debug: None) -> None:
    @channel("private-{name:slug}")
    def rule(user: Any, name: str) -> bool:
        return True

    assert code(ask(client, "private-encrypted-a")) == (403, "no_rule")


def test_json_body_is_refused(client: Client, debug: None) -> None:
    response = client.post("/pusher/auth", {"socket_id": SOCKET}, content_type="application/json")
    assert code(response) == (400, "content_type")


def test_get_is_not_allowed(client: Client) -> None:
    assert client.get("/pusher/auth").status_code == 405


def test_reason_is_logged_and_not_sent_without_debug(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="fanfare.integration.auth"):
        response = ask(client, "private-nobody")
    assert json.loads(response.content) == {"error": "Forbidden", "code": "refused"}
    assert "No authorization rule matches private-nobody" in caplog.text


def test_missing_application_is_answered_with_503(client: Client, debug: None, application: models.Application) -> None:
    application.delete()
    assert code(ask(client, "private-a")) == (503, "no_application")


def test_rotated_secret_is_used_for_the_next_request(
    client: Client, application: models.Application, oracle: pusher.Pusher
) -> None:
    @channel("private-a")
    def rule(user: Any) -> bool:
        return True

    before = json.loads(ask(client, "private-a").content)
    application.secret = "another"
    application.save()
    after = json.loads(ask(client, "private-a").content)
    assert before == oracle.authenticate("private-a", SOCKET)
    assert after == pusher.Pusher("7", "key-7", "another").authenticate("private-a", SOCKET)


# -- CSRF --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def strict() -> Client:
    return Client(enforce_csrf_checks=True)


def test_missing_csrf_token_is_refused_with_a_hint(strict: Client, debug: None) -> None:
    response = ask(strict, "private-a")
    assert code(response) == (403, "csrf")
    assert "X-CSRFToken" in response.content.decode()


def test_csrf_token_in_the_header_is_accepted(strict: Client) -> None:
    @channel("private-a")
    def rule(user: Any) -> bool:
        return True

    token = "a" * 32
    strict.cookies["csrftoken"] = token
    form = {"socket_id": SOCKET, "channel_name": "private-a"}
    assert strict.post("/pusher/auth", form, headers={"X-CSRFToken": token}).status_code == 200
    assert strict.post("/pusher/auth", form, headers={"X-CSRFToken": "b" * 32}).status_code == 403
