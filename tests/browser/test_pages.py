"""The landing page and the pages it links to."""

from __future__ import annotations

import functools
import re
import subprocess
import sys

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import OpenWindow
from tests.harness import calls, parts, pusherjs, servers, waiting


def landing(window: OpenWindow, server: servers.Server) -> Page:
    page = window()
    page.goto(server.url("/"))
    expect(page.locator("#state")).to_have_text("This page is connected")
    page.wait_for_function("pusher.channel('orders').subscribed")
    return page


def snippet(page: Page, tab: str) -> str:
    page.get_by_role("tab", name=tab, exact=True).click()
    return page.get_by_role("tabpanel", name=tab, exact=True).locator("code").inner_text()


def test_event_of_the_landing_page_arrives_beside_its_form(debug: servers.Server, window: OpenWindow) -> None:
    page, other = landing(window, debug), landing(window, debug)
    form = page.locator("#publish")
    form.get_by_role("button", name="Publish").click()
    expect(page.locator("#heard li")).to_have_text(re.compile(r'orders / created: \{"id":42\} \d+ ms'))
    expect(other.locator("#heard li")).to_have_text('orders / created: {"id":42}')
    form.get_by_label("Channel").fill("news")
    form.get_by_label("Data").fill("<b>Hello</b>")
    form.get_by_role("button", name="Publish").click()
    expect(page.locator("#heard li").first).to_contain_text('news / created: "<b>Hello</b>"')


def test_snippet_of_pusher_js_gets_the_events_of_the_others(debug: servers.Server, window: OpenWindow) -> None:
    """Each snippet is run as it is shown."""
    page, reader = landing(window, debug), window()
    logged: list[str] = []
    reader.on("console", lambda message: logged.append(message.text))
    reader.goto(debug.url("/static/fanfare/site.css"))  # a document of this origin without a script
    reader.set_content(f"<!doctype html>{snippet(page, 'pusher-js')}")
    reader.wait_for_function("pusher.channel('orders').subscribed")
    commands = {
        "Python": [sys.executable, "-c", snippet(page, "Python")],
        "curl": ["bash", "-euo", "pipefail", "-c", snippet(page, "curl")],
    }
    parts.executable("openssl")
    for count, (name, command) in enumerate(commands.items(), start=1):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, f"{name}: {done.stderr}"
        expect(page.locator("#heard li")).to_have_count(count)
        waiting.until(functools.partial(has_logged, reader, logged, count), 30, f"the event of {name}")


def test_snippet_of_echo_gets_the_events_of_django_code(debug: servers.Server, window: OpenWindow) -> None:
    page = landing(window, debug)
    subscribed = 'echo.channel("orders").subscribed(() => console.log("subscribed"));'
    code = f"globalThis.window = globalThis;\n{snippet(page, 'Echo')}\n{subscribed}"
    with pusherjs.Runtime() as runtime, runtime.module(code) as lines:
        assert next(lines) == "subscribed"
        debug.deployment.manage("shell", "--no-imports", "-c", snippet(page, "Django"))
        assert next(lines) == "order 42"


def test_snippet_of_htmx_loads_the_list_again_at_each_event(debug: servers.Server, window: OpenWindow) -> None:
    page, reader = landing(window, debug), window()
    with pusherjs.Runtime():  # installs the npm packages
        reader.goto(debug.url("/static/fanfare/site.css"))
    loads: list[str] = []
    reader.route("**/orders/", lambda route: (loads.append("load"), route.fulfill(body=f"<li>{len(loads)}</li>")))
    htmx = (pusherjs.CLIENTS / "node_modules/htmx.org/dist/htmx.min.js").read_text(encoding="utf-8")
    reader.set_content(f"<!doctype html><script>{htmx}</script>{snippet(page, 'HTMX')}")
    expect(reader.locator("ul li")).to_have_text("1")
    reader.wait_for_function("pusher.channel('orders').subscribed")
    calls.publish(debug, "orders", "created", "{}")
    expect(reader.locator("ul li")).to_have_text("2")


MOUNT = """
import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
createRoot(document.querySelector("main")).render(<StrictMode><Orders /></StrictMode>);
window.pusher = pusher;
"""


def test_snippet_of_react_lists_the_orders(debug: servers.Server, window: OpenWindow) -> None:
    page, reader = landing(window, debug), window()
    with pusherjs.Runtime() as runtime:
        script = runtime.bundle(snippet(page, "React") + MOUNT)
    reader.goto(debug.url("/static/fanfare/site.css"))
    reader.set_content("<!doctype html><main></main>")
    reader.add_script_tag(content=script)
    reader.wait_for_function("window.pusher?.channel('orders')?.subscribed")
    for number in (41, 42):
        calls.publish(debug, "orders", "created", f'{{"id": {number}}}')
    expect(reader.locator("li")).to_have_text(["Order 41", "Order 42"])


def has_logged(reader: Page, logged: list[str], count: int) -> bool:
    reader.evaluate("0")  # lets Playwright call the listener
    return logged.count("order 42") == count


def test_every_tab_has_a_snippet_with_live_values(debug: servers.Server, window: OpenWindow) -> None:
    page = landing(window, debug)
    tabs = page.get_by_role("tab").all_inner_texts()
    assert tabs == [
        *("pusher-js", "Echo", "React", "HTMX", "Swift", "Kotlin"),
        *("Django", "Python", "PHP", "curl", "Rules"),
    ]
    for tab in tabs:
        text = snippet(page, tab)
        assert "YOUR_" not in text
        assert tab in ("Django", "Rules") or (debug.application.key in text and str(debug.port) in text), tab
    page.get_by_role("tab", name="Kotlin").press("ArrowRight")
    expect(page.get_by_role("tab", name="pusher-js")).to_be_focused()


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
        page.wait_for_load_state("load")
        assert is_styled(page.evaluate("[...document.styleSheets].map(s => s.cssRules.length)")), target


def is_styled(rules: list[int]) -> bool:
    """All stylesheets were loaded and have rules; without DEBUG, a missing static file is easily overlooked."""
    return bool(rules) and all(rules)


def test_pages_have_no_horizontal_scroll_on_a_phone(debug: servers.Server, window: OpenWindow) -> None:
    page = window()
    page.set_viewport_size({"width": 375, "height": 800})
    for path in ("/", "/demo/", "/docs/start/"):
        page.goto(debug.url(path))
        assert page.evaluate("document.documentElement.scrollWidth") <= 375, path
