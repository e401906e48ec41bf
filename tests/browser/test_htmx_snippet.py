"""The HTMX code of docs/how-to/frontends.md in Chromium."""

from __future__ import annotations

import re
import time
from uuid import uuid4

from playwright.sync_api import expect

from tests.browser.conftest import OpenWindow
from tests.browser.test_pusher_js import SCRIPT
from tests.harness import calls, pusherjs, servers, signing
from tests.unit.docs import pages

PAGE = pages.ROOT / "docs/how-to/frontends.md"
HTMX = pusherjs.CLIENTS / "node_modules/htmx.org/dist/htmx.min.js"

CONNECT = """
([key, port, token]) => {
  window.fanfare = new Pusher(key, {
    cluster: "", wsHost: "127.0.0.1", wsPort: port, forceTLS: false, enabledTransports: ["ws"],
    channelAuthorization: { customHandler: (_, done) => done(null, { auth: token }) },
  });
}
"""


def test_event_makes_htmx_load_the_fragment_again(production: servers.Server, window: OpenWindow) -> None:
    """The client is that of the page's template tag, which tests of its own cover."""
    with pusherjs.Runtime():  # installs the npm packages
        page = window()
    blocks = [one.text for one in pages.blocks(PAGE)]
    (markup,) = [text for text in blocks if "hx-get" in text]
    (code,) = [text for text in blocks if "orders-changed" in text and "dispatchEvent" in text]
    (element,) = re.findall(r"<ul .*</ul>", markup)
    loads: list[str] = []
    page.route("**/orders/", lambda route: (loads.append("load"), route.fulfill(body=f"<li>{len(loads)}</li>")))
    page.goto(production.url("/static/fanfare/site.css"))
    page.set_content(element)
    for script in (HTMX, SCRIPT):
        page.add_script_tag(path=script)
    now = int(time.time())
    claims = {"channels": ["private-orders"], "exp": now + 600, "iat": now, "jti": uuid4().hex}
    token = signing.capability_token(production.application, claims)
    page.evaluate(CONNECT, [production.application.key, production.port, token])
    page.evaluate(f"() => {{ {code} }}")
    page.wait_for_function("fanfare.channel('private-orders').subscribed")
    for number in ("1", "2"):
        calls.publish(production, "private-orders", "changed", "{}")
        expect(page.locator("ul li")).to_have_text(number)
