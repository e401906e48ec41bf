"""The auth endpoints as pages of other hosts, and programs with a token, use them."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth.models import User
from django.http import HttpResponse
from django.test import Client

from fanfare import conf
from fanfare.applications import models

SHOP = "https://shop.example.com"
PATHS = ["/pusher/auth", "/pusher/user-auth"]

on_both = pytest.mark.parametrize("path", PATHS)


@pytest.fixture(autouse=True)
def named(settings: Any, application: models.Application) -> None:
    settings.FANFARE = {"CORS_ORIGINS": [SHOP]}


@pytest.fixture
def browser(db: None) -> Client:
    """That of a signed-in user; it has no CSRF token."""
    browser = Client(enforce_csrf_checks=True)
    browser.force_login(User.objects.create_user("ann", pk=42))
    return browser


def post(browser: Client, path: str, **headers: str) -> HttpResponse:
    form = {"socket_id": "1.2", "channel_name": "private-x"}
    return browser.post(path, form, headers=headers)  # type: ignore[return-value]


def preflight(browser: Client, path: str, origin: str) -> HttpResponse:
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,x-csrftoken",
    }
    return browser.options(path, headers=headers)  # type: ignore[return-value]


def test_page_of_a_listed_origin_needs_no_csrf_token(browser: Client) -> None:
    response = post(browser, "/pusher/user-auth", Origin=SHOP)
    assert response.status_code == 200
    assert response["Access-Control-Allow-Origin"] == SHOP
    assert response["Access-Control-Allow-Credentials"] == "true"


@on_both
def test_page_of_a_listed_origin_can_read_a_refusal(path: str) -> None:
    response = post(Client(enforce_csrf_checks=True), path, Origin=SHOP)
    assert response.status_code == 403
    assert response["Access-Control-Allow-Origin"] == SHOP


@on_both
@pytest.mark.parametrize("origin", ["https://evil.example.com", "http://shop.example.com", "null", SHOP + ".evil.com"])
def test_page_of_another_origin_is_refused(browser: Client, path: str, origin: str) -> None:
    response = post(browser, path, Origin=origin)
    assert response.status_code == 403
    assert "Access-Control-Allow-Origin" not in response


@on_both
def test_request_without_an_origin_needs_a_csrf_token(browser: Client, path: str) -> None:
    assert post(browser, path).status_code == 403


@on_both
def test_preflight_of_a_listed_origin_allows_the_requested_headers(browser: Client, path: str) -> None:
    response = preflight(browser, path, SHOP)
    assert response.status_code == 204
    assert response["Access-Control-Allow-Origin"] == SHOP
    assert response["Access-Control-Allow-Methods"] == "POST"
    assert response["Access-Control-Allow-Headers"] == "authorization,x-csrftoken"


@on_both
def test_preflight_of_another_origin_is_refused(browser: Client, path: str) -> None:
    response = preflight(browser, path, "https://evil.example.com")
    assert response.status_code == 405
    assert not [name for name in response.headers if name.startswith("Access-Control")]


@on_both
def test_responses_vary_by_origin(browser: Client, path: str) -> None:
    for headers in ({}, {"Origin": SHOP}):
        assert "Origin" in post(browser, path, **headers)["Vary"]


@pytest.mark.parametrize(
    ("authorization", "status"),
    [("Bearer abc", 200), ("Token abc", 200), ("Basic YTpi", 403), ("negotiate x", 403), ("", 403)],
)
def test_authorization_token_replaces_the_csrf_token(browser: Client, authorization: str, status: int) -> None:
    assert post(browser, "/pusher/user-auth", Authorization=authorization).status_code == status


@pytest.mark.parametrize(
    ("listed", "origin", "status"),
    [
        ("https://*.example.com", "https://a.shop.example.com", 200),
        ("https://*.example.com", "https://example.com", 403),
        ("https://*.example.com", "https://example.com.evil.com", 403),
        ("https://müller.example", "https://xn--mller-kva.example", 200),
        ("capacitor://localhost", "capacitor://localhost", 200),
        ("capacitor://localhost", "http://localhost", 403),
        ("https://shop.example.com:443", "https://shop.example.com", 200),
    ],
)
def test_list_takes_the_entries_that_applications_take(
    browser: Client, monkeypatch: pytest.MonkeyPatch, listed: str, origin: str, status: int
) -> None:
    monkeypatch.setenv("FANFARE_CORS_ORIGINS", listed)
    conf.settings.reload()
    assert post(browser, "/pusher/user-auth", Origin=origin).status_code == status
    assert preflight(browser, "/pusher/auth", origin).status_code == (204 if status == 200 else 405)
    monkeypatch.undo()
    conf.settings.reload()
