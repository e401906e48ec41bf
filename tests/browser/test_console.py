"""The console in a real browser, with traffic on four workers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page, Route, expect

from fanfare.console import pages
from tests.browser.conftest import OpenWindow
from tests.browser.test_admin import log_in
from tests.harness import calls, pusherjs, servers, wire

AXE = Path(pusherjs.CLIENTS) / "node_modules/axe-core/axe.min.js"
# No inline script, no inline style, no other host.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; base-uri 'none'"
)
VIEWS = [(1280, "light"), (390, "dark")]


@pytest.fixture
def server(production: servers.Server) -> servers.Server:
    return production


@pytest.fixture
def traffic(server: servers.Server) -> Iterator[wire.Wire]:
    """A client in two channels, and an event in one of them."""
    with (
        wire.Wire(server.port, f"/app/{server.application.key}?protocol=7&client=js&version=8.6.0") as socket,
        calls.Caller(server, server.application) as caller,
    ):
        assert socket.receive() is not None
        for channel in ("console-room", "cache-console"):
            subscribe(socket, {"channel": channel})
        subscribe(socket, {"channel": "private-console", "auth": f"{server.application.key}:0"})
        assert caller.publish("cache-console", "tick", '{"n": 1}').status == 200
        yield socket


def subscribe(socket: wire.Wire, data: dict[str, str]) -> None:
    text = json.dumps({"event": "pusher:subscribe", "data": data})
    socket.send(wire.WireFrame(wire.TEXT, text.encode()))


@pytest.fixture
def admin(server: servers.Server, window: OpenWindow) -> Page:
    """A window that is logged in, and in which the strict policy holds for every page of the console."""

    def strict(route: Route) -> None:
        if route.request.resource_type != "document":
            route.continue_()
            return
        response = route.fetch()
        route.fulfill(response=response, headers={**response.headers, "content-security-policy": POLICY})

    page = window()
    log_in(page, server)
    page.route(lambda url: urlsplit(url).path.startswith("/admin/fanfare/console/"), strict)
    return page


def violations(page: Page) -> list[str]:
    """What axe-core finds."""
    if not AXE.exists():
        with pusherjs.Runtime():
            pass
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found: dict[str, Any] = page.evaluate("axe.run(document.getElementById('content'))")
    return [f"{one['id']}: {node['html'][:150]}" for one in found["violations"] for node in one["nodes"][:3]]


@pytest.mark.parametrize(("width", "scheme"), VIEWS)
def test_every_page_is_live_accessible_and_within_the_window(
    admin: Page, server: servers.Server, traffic: wire.Wire, width: int, scheme: Any
) -> None:
    admin.set_viewport_size({"width": width, "height": 900})
    admin.emulate_media(color_scheme=scheme)
    server.deployment.create_application(f"An application with a name of many words, as a page of {width} px shows it")
    problems: list[str] = []
    for page in pages.PAGES:
        admin.goto(server.url(f"/admin/fanfare/console/{page.path}"))
        expect(admin.locator("#console-state")).not_to_have_attribute("data-state", "lost")
        admin.wait_for_load_state("load")
        if page.group == "Now":
            expect(admin.locator("#console-state")).to_have_text("Live")
        problems += [f"{page.name}: {one}" for one in violations(admin)]
        overflow = admin.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        if overflow > 0:
            problems.append(f"{page.name}: {overflow} px wider than the window")
    assert problems == []


def test_overview_shows_all_workers_and_names_refusals(admin: Page, server: servers.Server, traffic: wire.Wire) -> None:
    admin.goto(server.url("/admin/fanfare/console/"))
    expect(admin.locator("#workers tr")).to_have_count(4)
    expect(admin.locator("#verdict")).to_contain_text("refusal")
    expect(admin.locator("#charts canvas").first).to_be_visible()


def test_channel_is_found_with_its_cached_event(admin: Page, server: servers.Server, traffic: wire.Wire) -> None:
    admin.goto(server.url(f"/admin/fanfare/console/channels/?app={server.application.id}&text=cache-console"))
    admin.get_by_role("link", name="cache-console").click()
    expect(admin.locator("#cached")).to_contain_text("tick")
    expect(admin.locator("#kept")).to_contain_text("Add a rule")


def test_client_is_found_and_disconnected(admin: Page, server: servers.Server, traffic: wire.Wire) -> None:
    admin.goto(server.url("/admin/fanfare/console/connections/?channel=console-room"))
    row = admin.locator("#connections tr", has_text="js 8.6.0")
    expect(row).to_have_count(1)
    row.get_by_role("button", name="Disconnect").click()
    admin.get_by_role("dialog").get_by_role("button", name="Disconnect").click()
    expect(admin.locator("#connections")).to_contain_text("No connection matches.")
    traffic.socket.settimeout(5)
    while (frame := traffic.receive()) is not None and frame.opcode != wire.CLOSE:
        continue
    assert frame is not None
    assert int.from_bytes(frame.payload[:2], "big") == 4200
    admin.goto(server.url("/admin/fanfare/auditentry/"))
    expect(admin.locator("#result_list")).to_contain_text("disconnect")


def test_list_of_connections_is_renewed_and_keeps_the_focus_and_opened_channels(
    admin: Page, server: servers.Server, traffic: wire.Wire
) -> None:
    admin.goto(server.url("/admin/fanfare/console/connections/?channel=console-room"))
    summary = admin.locator("#connections summary")
    summary.click()
    expect(admin.locator("#connections details")).to_contain_text("cache-console")
    with wire.Wire(server.port, f"/app/{server.application.key}?protocol=7&client=other&version=1") as socket:
        assert socket.receive() is not None
        subscribe(socket, {"channel": "console-room"})
        expect(admin.locator("#connections tr")).to_have_count(2)
        expect(admin.locator("#connections details[open]")).to_contain_text("cache-console")
        expect(summary).to_be_focused()


def test_rows_of_a_narrow_page_are_cards_with_their_buttons_in_the_window(
    admin: Page, server: servers.Server, traffic: wire.Wire
) -> None:
    admin.set_viewport_size({"width": 390, "height": 900})
    admin.goto(server.url("/admin/fanfare/console/connections/?channel=console-room"))
    button = admin.locator("#connections tr", has_text="js 8.6.0").get_by_role("button", name="Disconnect")
    expect(button).to_be_visible()
    box = button.bounding_box()
    assert box is not None
    assert box["x"] + box["width"] <= 390


def test_drained_worker_takes_clients_again_after_resume(admin: Page, server: servers.Server) -> None:
    admin.goto(server.url("/admin/fanfare/console/workers/"))
    row = admin.locator("#nodes tbody tr").first
    name = row.locator("th").inner_text()
    for action, state in (("Drain", "draining"), ("Resume", "well")):
        admin.get_by_role("button", name=f"{action.lower()} ").and_(admin.locator(f"[aria-label$=' {name}']")).click()
        admin.locator("#ask-yes").click()
        expect(admin.locator("#nodes tbody tr", has_text=name).first).to_contain_text(state)
