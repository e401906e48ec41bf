"""The reference of the HTTP API: drawn from the project's own files, and usable without a mouse."""

from __future__ import annotations

import json
import re
import urllib.request

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import OpenWindow
from tests.harness import servers


@pytest.mark.parametrize("kind", ["debug", "production", "daphne"])
def test_every_call_is_listed(request: pytest.FixtureRequest, kind: str, window: OpenWindow) -> None:
    server: servers.Server = request.getfixturevalue(kind)
    with urllib.request.urlopen(server.url("/api/openapi.json")) as response:
        described = json.load(response)
    page = window()
    page.goto(server.url("/api/docs"))
    expect(page.get_by_role("heading", level=1)).to_have_text("HTTP API")
    operations = page.locator(".opblock")
    expect(operations).to_have_count(sum(len(methods) for methods in described["paths"].values()))
    for path in described["paths"]:
        expect(page.locator(f'[data-path="{path}"]').first).to_be_visible()


def test_a_call_is_opened_with_the_keyboard_and_says_what_it_takes_and_answers(
    debug: servers.Server, window: OpenWindow
) -> None:
    page = window()
    page.goto(debug.url("/api/docs"))
    call = page.locator(".opblock", has_text="/apps/{app_id}/batch_events")
    call.get_by_role("button").first.focus()
    page.keyboard.press("Enter")
    expect(call).to_contain_text("In order, and all of them or none.")
    expect(call).to_contain_text("More events, or appends to a stream, than are allowed in this second.")
    expect(page).to_have_url(re.compile("trigger_batch"))
    expect(page.get_by_role("button", name="Try it out")).to_have_count(0)


def test_it_fits_a_phone_opened_and_in_the_dark(debug: servers.Server, window: OpenWindow) -> None:
    page = window()
    page.set_viewport_size({"width": 375, "height": 800})
    page.emulate_media(color_scheme="dark")
    page.goto(debug.url("/api/docs#/Events/trigger"))
    expect(page.locator(".opblock.is-open")).to_contain_text("Publish an event")
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    assert "dark-mode" in (page.locator("html").get_attribute("class") or "")


def test_the_docs_lead_to_it(debug: servers.Server, window: OpenWindow) -> None:
    page = window()
    page.goto(debug.url("/docs/start/"))
    page.locator('main a[href="/api/docs"]').first.click()
    expect(page.locator(".opblock").first).to_be_visible()
    page.goto(debug.url("/api/"))
    expect(page).to_have_url(debug.url("/api/docs"))
