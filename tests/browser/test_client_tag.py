"""The template tag's client in a real page, under a content security policy that allows nothing inline."""

from __future__ import annotations

from typing import Any

import pytest
from django.template import RequestContext, Template
from django.test import RequestFactory

from fanfare.applications import registry
from fanfare.integration import target
from tests.browser import conftest
from tests.harness import servers

NONCE = "bm9uY2U"

CHROMIUM_ARGUMENTS = [conftest.ALLOW_LOCAL]

JOIN = """
new Promise((done, fail) => {
  const room = fanfare.subscribe("presence-demo");
  room.bind("pusher:subscription_succeeded", (members) => done(members.count));
  room.bind("pusher:subscription_error", ({ status }) => fail(new Error(`refused with ${status}`)));
  setTimeout(() => fail(new Error(`no answer while ${fanfare.connection.state}`)), 10000);
})
"""


@pytest.fixture
def html(monkeypatch: pytest.MonkeyPatch, settings: Any, debug: servers.Server) -> Any:
    """`html(params)`: the tag as a page of that server would render it."""
    key = registry.Application(debug.application.id, debug.application.key, "")
    monkeypatch.setattr(target, "page_application", lambda: key)
    settings.ALLOWED_HOSTS = [servers.HOST]

    def render(params: dict[str, str]) -> str:
        request = RequestFactory().get("/tag/", headers={"Host": f"{servers.HOST}:{debug.port}"})
        tag = "{% load fanfare %}<!doctype html><title>t</title>{% fanfare_client nonce=nonce params=params %}"
        return Template(tag).render(RequestContext(request, {"nonce": NONCE, "params": params}))

    return render


def test_client_connects_and_joins_with_the_session_of_the_page(
    debug: servers.Server, window: conftest.OpenWindow, html: Any
) -> None:
    page = window()
    guest = "amber-harp"
    page.goto(debug.url(f"/demo/?guest={guest}"))  # sets the CSRF cookie
    policy = f"default-src 'none'; script-src 'nonce-{NONCE}'; connect-src 'self' ws://{servers.HOST}:{debug.port}"
    page.route(
        "**/tag/",
        lambda route: route.fulfill(
            body=html({"guest": guest}), content_type="text/html", headers={"Content-Security-Policy": policy}
        ),
    )
    page.goto(debug.url("/tag/"))
    assert page.evaluate(JOIN) == 1
    assert page.evaluate("typeof fanfareResume.positions") == "function"
