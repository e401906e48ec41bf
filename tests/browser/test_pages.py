"""The landing page and the pages it links to."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import OpenWindow
from tests.harness import servers


def test_landing_page_connects_and_shows_snippets_with_the_key(debug: servers.Server, window: OpenWindow) -> None:
    page = window()
    page.goto(debug.url("/"))
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    expect(page.locator("#state")).to_have_text("This page is connected")
    body = page.locator("main")
    expect(body).to_contain_text(debug.application.key)
    expect(body).to_contain_text(str(debug.port))
    assert debug.application.secret not in page.content()


def test_landing_page_without_debug_shows_no_credentials(production: servers.Server, window: OpenWindow) -> None:
    page = window()
    page.goto(production.url("/"))
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    assert production.application.key not in page.content()
    assert production.application.secret not in page.content()


@pytest.mark.parametrize("kind", ["debug", "production", "daphne"])
def test_landing_page_links_to_styled_demo_docs_and_admin(
    request: pytest.FixtureRequest, kind: str, window: OpenWindow
) -> None:
    server: servers.Server = request.getfixturevalue(kind)
    page = window()
    for target in ("/demo/", "/docs/", "/admin/"):
        page.goto(server.url("/"))
        page.locator(f'main a[href="{target}"]').first.click()
        expect(page).to_have_url(re.compile(re.escape(server.url(target))))
        expect(page.locator("body")).to_be_visible()
        assert is_styled(page.evaluate("[...document.styleSheets].map(s => s.cssRules.length)")), target


def is_styled(rules: list[int]) -> bool:
    """All stylesheets were loaded and have rules; without DEBUG, a missing static file is easily overlooked."""
    return bool(rules) and all(rules)


def test_pages_have_no_horizontal_scroll_on_a_phone(debug: servers.Server, window: OpenWindow) -> None:
    page = window()
    page.set_viewport_size({"width": 375, "height": 800})
    for path in ("/", "/demo/", "/docs/"):
        page.goto(debug.url(path))
        assert page.evaluate("document.documentElement.scrollWidth") <= 375, path
