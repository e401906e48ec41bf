"""Login attempts are limited by address, and failed ones are logged."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from django.contrib.auth.models import User
from django.test import AsyncClient, Client, RequestFactory
from django.urls import reverse
from pytest_django import Settings

from fanfare import middleware

pytestmark = pytest.mark.django_db(transaction=True)

WRONG = {"username": "ann", "password": "wrong"}
RIGHT = {"username": "ann", "password": "right"}


@pytest.fixture(autouse=True)
def throttled(settings: Settings) -> None:
    settings.MIDDLEWARE = ["fanfare.middleware.LoginThrottle", *settings.MIDDLEWARE]
    settings.FANFARE = {"LOGIN_ATTEMPTS": 3}
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]


@pytest.fixture
def login() -> Iterator[str]:
    User.objects.create_user("ann", password="right", is_staff=True)
    middleware._log._windows.clear()
    yield reverse("admin:login")


def test_attempts_over_the_limit_get_429_with_the_limit(client: Client, login: str) -> None:
    assert [client.post(login, WRONG).status_code for _ in range(5)] == [200, 200, 200, 429, 429]
    refused = client.post(login, RIGHT)
    assert refused.status_code == 429
    assert refused.headers["Retry-After"] == "20"
    assert "3 a minute are allowed" in refused.content.decode()
    assert client.get(login).status_code == 200


def test_other_addresses_are_not_affected(client: Client, login: str) -> None:
    for _ in range(5):
        client.post(login, WRONG)
    assert client.post(login, RIGHT, REMOTE_ADDR="192.0.2.7").status_code == 302


@pytest.mark.parametrize("header", ["HTTP_X_FORWARDED_FOR", "HTTP_FORWARDED", "HTTP_X_REAL_IP"])
def test_forged_headers_do_not_change_the_address(client: Client, login: str, header: str) -> None:
    statuses = [client.post(login, WRONG, **{header: f"192.0.2.{n}"}).status_code for n in range(5)]
    assert statuses[-1] == 429


def test_addresses_of_one_ipv6_network_count_together(client: Client, login: str) -> None:
    statuses = [client.post(login, WRONG, REMOTE_ADDR=f"2001:db8::{n}").status_code for n in range(5)]
    assert statuses == [200, 200, 200, 429, 429]
    assert client.post(login, WRONG, REMOTE_ADDR="2001:db8:0:1::1").status_code == 200


def test_successful_logins_do_not_count(client: Client, login: str) -> None:
    for _ in range(10):
        assert client.post(login, RIGHT).status_code == 302
        client.logout()


def test_a_successful_login_does_not_forgive_failed_ones(client: Client, login: str) -> None:
    """The owner of one account must not be able to guess the passwords of others without limit."""
    for _ in range(3):
        assert client.post(login, {"username": "admin", "password": "guess"}).status_code == 200
        own = client.post(login, RIGHT)
        client.logout()
    assert own.status_code == 429
    assert client.post(login, {"username": "admin", "password": "guess"}).status_code == 429


def test_attempts_are_allowed_again_after_a_while() -> None:
    now = 100.0
    throttle = middleware.LoginThrottle(lambda request: None, clock=lambda: now)
    request = RequestFactory().post(reverse("admin:login"), WRONG)
    assert [throttle._refusal(request) is None for _ in range(4)] == [True, True, True, False]
    now += 20
    assert [throttle._refusal(request) is None for _ in range(2)] == [True, False]


def test_remembered_addresses_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "MAX_ADDRESSES", 10)
    throttle = middleware.LoginThrottle(lambda request: None)
    for n in range(50):
        throttle._refusal(RequestFactory().post(reverse("admin:login"), WRONG, REMOTE_ADDR=f"192.0.2.{n}"))
    assert len(throttle._buckets) == 10


def test_failures_are_logged_without_the_password(client: Client, login: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "fanfare.middleware"):
        client.post(login, {"username": "ann\n2026 forged line", "password": "hunter2"}, REMOTE_ADDR="192.0.2.9")
    (line,) = [record.getMessage() for record in caplog.records if record.name == "fanfare.middleware"]
    assert line.startswith("Login failed for 'ann")
    assert line.endswith("from 192.0.2.9")
    assert "\n" not in line
    assert "hunter2" not in caplog.text


def test_flood_is_a_bounded_number_of_lines(client: Client, login: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "fanfare.middleware"):
        for _ in range(50):
            client.post(login, WRONG)
    lines = [record for record in caplog.records if record.name == "fanfare.middleware"]
    assert len(lines) <= 3 + middleware.LOGGED_PER_MINUTE


def test_other_posts_are_not_counted(client: Client, login: str) -> None:
    for _ in range(10):
        client.post("/nowhere/")
        client.post(reverse("admin:index"))
    assert client.post(login, WRONG).status_code == 200


async def test_async_stack_is_limited_too(async_client: AsyncClient) -> None:
    statuses = [(await async_client.post(reverse("admin:login"), WRONG)).status_code for _ in range(5)]
    assert statuses == [200, 200, 200, 429, 429]
