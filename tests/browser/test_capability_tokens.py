"""Capability tokens in Chromium, with pusher-js and EventSource, and their revocation in the console."""

from __future__ import annotations

import time
from typing import Any
from uuid import uuid4

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.conftest import PATIENCE_MS, OpenWindow
from tests.browser.test_admin import log_in
from tests.browser.test_pusher_js import SCRIPT
from tests.harness import calls, event_streams, pusherjs, servers, signing

CONNECT = """
([key, port, token]) => {
  window.seen = [];
  window.pusher = new Pusher(key, {
    cluster: "", wsHost: "127.0.0.1", wsPort: port, forceTLS: false, enabledTransports: ["ws"],
    channelAuthorization: { customHandler: (_, done) => done(null, { auth: token }) },
  });
  window.join = (channel) => {
    pusher.subscribe(channel).bind_global((event, data) => seen.push({ channel, event, data }));
  };
}
"""

LISTEN = """
(url) => {
  window.seen = [];
  window.source = new EventSource(url);
  source.onmessage = ({ data }) => seen.push(JSON.parse(data));
  source.addEventListener("stream", () => { window.opened = true; });
}
"""


@pytest.fixture
def channel() -> str:
    return f"private-tokens-{uuid4().hex[:8]}"


def token(server: servers.Server, token_id: str, *channels: str) -> str:
    now = int(time.time())
    claims: dict[str, Any] = {"channels": channels, "rights": ["subscribe"], "iat": now, "exp": now + 600}
    return signing.capability_token(server.application, claims | {"jti": token_id})


def seen(page: Page, channel: str, event: str) -> Any:
    """The data of the first such event."""
    found = "([channel, event]) => seen.find((one) => one.channel === channel && one.event === event)"
    return page.wait_for_function(found, arg=[channel, event]).evaluate("({ data }) => data ?? null")


def revoke(admin: Page, server: servers.Server, token_id: str) -> None:
    """Revoke the token by its id in the console."""
    admin.goto(server.url(f"/admin/fanfare/console/connections/?app={server.application.id}"))
    form = admin.locator("#revoke")
    expect(form.get_by_label("Application")).to_have_value(server.application.id)
    form.get_by_label("Its id").fill(token_id)
    form.get_by_role("button", name="Revoke").click()
    expect(form.get_by_role("status")).to_have_text(f"The token {token_id} is revoked.")


def test_page_with_pusher_js_uses_a_token_until_the_console_revokes_it(
    production: servers.Server, window: OpenWindow, channel: str
) -> None:
    with pusherjs.Runtime():  # installs the npm packages
        page = window()
    token_id = uuid4().hex
    page.goto(production.url("/static/fanfare/site.css"))  # a document of this origin without a script
    page.add_script_tag(path=SCRIPT)
    page.evaluate(CONNECT, [production.application.key, production.port, token(production, token_id, channel)])
    page.evaluate("(channel) => { join(channel); join(`${channel}-other`); }", channel)
    assert seen(page, f"{channel}-other", "pusher:subscription_error")["status"] == 401
    seen(page, channel, "pusher:subscription_succeeded")
    calls.publish(production, channel, "tick", '{"n": 1}')
    assert seen(page, channel, "tick") == {"n": 1}

    admin = window()
    log_in(admin, production)
    revoke(admin, production, token_id)
    assert seen(page, channel, "pusher:subscription_error")["type"] == "TokenRevoked"
    assert page.evaluate("pusher.connection.state") == "connected"
    page.evaluate("(channel) => { seen.length = 0; pusher.unsubscribe(channel); join(channel); }", channel)
    assert seen(page, channel, "pusher:subscription_error")["status"] == 401
    admin.goto(production.url("/admin/fanfare/auditentry/"))
    expect(admin.locator("#result_list tbody tr", has_text=token_id)).to_contain_text("revoke")


def test_event_source_with_a_token_ends_when_the_console_revokes_it(
    production: servers.Server, window: OpenWindow, chromium: Browser, channel: str
) -> None:
    token_id = uuid4().hex
    context = chromium.new_context()  # Chromium reports the refused request in the console of the page
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    url = production.url(
        event_streams.path(production.application, [channel], token=token(production, token_id, channel))
    )
    page.goto(production.url("/health/live"))
    page.evaluate(LISTEN, url)
    page.wait_for_function("window.opened")
    calls.publish(production, channel, "tick", '{"n": 1}')
    page.wait_for_function("seen.some((one) => one.event === 'tick')")

    admin = window()
    log_in(admin, production)
    revoke(admin, production, token_id)
    page.wait_for_function("source.readyState === EventSource.CLOSED")
    assert page.evaluate("async (url) => (await fetch(url)).status", url) == 401
    context.close()
