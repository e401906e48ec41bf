"""`/pusher/user-auth`, compared with the vendor's own Python library and with our server."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from django.contrib.auth.models import AbstractUser, User
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.test import Client

from fanfare import UserData, errors, user_data
from fanfare.applications import loading, models
from fanfare.integration import users
from fanfare.protocol import sign_in as protocol
from tests.unit.integration import oracles

SOCKET = "1234.5678"


@pytest.fixture(autouse=True)
def unsaid(monkeypatch: pytest.MonkeyPatch, application: models.Application, settings: Any) -> None:
    """A project without a @user_data function, and with DEBUG, so that refusals have their reason."""
    monkeypatch.setattr(users, "registered", users.UserDataSource())
    settings.DEBUG = True


@pytest.fixture
def ann(client: Client) -> User:
    ann = User.objects.create_user("ann", pk=42)
    client.force_login(ann)
    return ann


def ask(client: Client, **more: Any) -> HttpResponse:
    return client.post("/pusher/user-auth", {"socket_id": SOCKET, **more})  # type: ignore[return-value]


def said(response: HttpResponse) -> dict[str, Any]:
    """The user that was signed, after the server that it is for has checked the signature."""
    assert response.status_code == 200, response.content
    body = json.loads(response.content)
    assert set(body) == {"auth", "user_data"}
    application = loading.fetch("7")
    assert application is not None
    protocol.authenticate(application, SOCKET, body, time.time())
    answer: dict[str, Any] = json.loads(body["user_data"])
    return answer


def refused(response: HttpResponse) -> tuple[int, str]:
    return response.status_code, json.loads(response.content)["code"]


def test_visitor_signs_in_as_the_session_user(client: Client, ann: User) -> None:
    assert said(ask(client)) == {"id": "42", "user_info": {"name": "ann"}}


def test_signature_is_that_of_the_vendor_library(client: Client, ann: User) -> None:
    expected = oracles.pusher_of("7", "key-7", "secret-7").authenticate_user(
        SOCKET, {"id": "42", "user_info": {"name": "ann"}}
    )
    assert json.loads(ask(client).content) == expected


def test_anonymous_visitor_is_refused(client: Client) -> None:
    assert refused(ask(client)) == (403, "anonymous")


def test_user_data_function_returns_id_info_and_watchlist(client: Client, ann: User) -> None:
    bob = User.objects.create_user("bob", pk=7)

    @user_data
    async def who(user: AbstractUser, request: HttpRequest) -> UserData:
        return UserData(f"{request.POST['team']}-{user.pk}", {"name": "Ann"}, watchlist=[bob, 8, "cid"])

    expected = {"id": "red-42", "user_info": {"name": "Ann"}, "watchlist": ["7", "8", "cid"]}
    assert said(ask(client, team="red")) == expected


def test_user_data_function_may_return_only_the_info(client: Client, ann: User) -> None:
    @user_data
    def who(user: AbstractUser) -> dict[str, Any]:
        return {"level": 3}

    assert said(ask(client)) == {"id": "42", "user_info": {"level": 3}}


def test_visitor_without_an_account_can_sign_in(client: Client) -> None:
    @user_data
    def who(user: Any) -> UserData:
        return UserData("guest-1")

    assert said(ask(client)) == {"id": "guest-1"}


@pytest.mark.parametrize("answer", [False, None, PermissionDenied("no")])
def test_user_data_function_may_refuse(client: Client, ann: User, answer: Any) -> None:
    @user_data
    def who(user: Any) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert refused(ask(client)) == (403, "refused")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("ann", "True, False, a dict or UserData"),
        (UserData(""), "is no id"),
        (UserData(None), "no primary key"),
        (UserData("x" * 129), "129 characters; the application allows 128"),
        (UserData(1, {"x": object()}), "no JSON form"),
        (UserData(1, "Ann"), "or None, not str"),  # type: ignore[arg-type]
        (UserData(1, {"x": "y" * 3000}), "2048"),
        (UserData(1, watchlist=["x" * 129]), "watchlist has 129 characters"),
        (UserData(1, watchlist="ann"), "['ann']"),
    ],
)
def test_invalid_user_data_is_refused_with_the_reason(client: Client, ann: User, answer: Any, reason: str) -> None:
    @user_data
    def who(user: Any) -> Any:
        return answer

    response = ask(client)
    assert refused(response) == (403, "invalid_answer")
    assert reason in json.loads(response.content)["error"]


def test_decorator_may_have_parentheses(client: Client) -> None:
    @user_data()
    def who(user: Any) -> UserData:
        return UserData("guest-1")

    assert said(ask(client)) == {"id": "guest-1"}


def test_second_user_data_function_is_refused() -> None:
    @user_data
    def who(user: Any) -> bool:
        return True

    with pytest.raises(errors.InvalidRule, match="a project has one such function"):

        @user_data
        def another(user: Any) -> bool:
            return True


def test_user_data_function_with_other_parameters_is_refused_at_import() -> None:
    with pytest.raises(errors.InvalidRule, match=r"write def who\(user\)"):

        @user_data
        def who(user: Any, channel: str) -> bool:
            return True


@pytest.mark.parametrize("socket_id", ["", "12", "1.2:x"])
def test_malformed_request_is_refused(client: Client, ann: User, socket_id: str) -> None:
    assert refused(ask(client, socket_id=socket_id)) == (400, "socket_id")
