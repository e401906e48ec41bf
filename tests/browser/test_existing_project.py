"""Follow the guide `existing-project.md` in Chromium: from a fresh `startproject` with the wheel to a live page."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import OpenWindow
from tests.harness import guides, packages
from tests.unit.docs import pages

GUIDE = pages.ROOT / "docs/how-to/existing-project.md"
MACHINE_S = 90.0  # of the guide's three minutes; the rest is for reading and typing
RELOAD_MS = 60_000  # a reload imports Django on a busy machine, and pusher-js waits before it reconnects


@pytest.fixture
def reader(built: packages.Built, tmp_path: Path) -> Iterator[guides.Reader]:
    site = packages.Site(tmp_path / "venv", [str(built.wheel), "django~=5.2.0"])
    with guides.reader(site, tmp_path) as found:
        yield found


def test_the_guide_leads_from_startproject_to_a_live_page(reader: guides.Reader, window: OpenWindow) -> None:
    start = time.monotonic()
    reader.follow(GUIDE, "2. Connect it")
    reader.follow(GUIDE, "3. Create the tables and an application")
    (runserver,) = guides.commands(GUIDE, "python manage.py runserver")
    server = reader.serve(runserver)

    landing = window()
    landing.goto(server.url("/fanfare/"))
    expect(landing.locator("#state")).to_have_text("This page is connected")
    assert reader.application is not None
    expect(landing.locator("main")).to_contain_text(reader.application.key)
    reader.follow(GUIDE, "4. See it work")  # publishes from a shell
    expect(landing.locator("#heard")).to_have_text('orders / created: {"id":42}')
    assert time.monotonic() - start < MACHINE_S
    landing.close()

    reader.follow(GUIDE, "5. A page of your own")
    first, second = window(), window()
    deadline = time.monotonic() + RELOAD_MS / 1000
    while server.get("/orders/")[0] != 200:
        assert time.monotonic() < deadline, server.log_text()
        time.sleep(0.2)
    for page in (first, second):
        page.route("**/favicon.ico", lambda route: route.fulfill(status=204))  # the guide's page has none
        page.goto(server.url("/orders/"))
        page.wait_for_function("fanfare.connection.state === 'connected' && fanfare.channel('orders').subscribed")
    first.locator("input[name=item]").fill("tea")
    first.get_by_role("button", name="Order").click()
    expect(second.locator("#orders")).to_have_text("tea")
    assert "Traceback" not in server.log_text()
