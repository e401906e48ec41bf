"""The code of docs/how-to/frontends.md in Chromium: HTMX, and React and Vue as esbuild builds them for a page."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from uuid import uuid4

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import OpenWindow
from tests.browser.test_pusher_js import SCRIPT
from tests.harness import calls, pusherjs, servers, signing
from tests.unit.docs import pages

Name = Callable[[str], str]

PAGE = pages.ROOT / "docs/how-to/frontends.md"
HTMX = pusherjs.CLIENTS / "node_modules/htmx.org/dist/htmx.min.js"

# Both show the newest event and end with `unmount()`. The development version of React mounts in strict mode, so that
# each effect runs, is cleaned up, and runs again.
CLIENT = """
import Pusher from "pusher-js";
const name = %s;
const pusher = window.pusher = new Pusher(%s, {
  cluster: "", wsHost: "127.0.0.1", wsPort: %d, forceTLS: false, enabledTransports: ["ws"],
});
"""
REACT = """
import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
function Orders() {
  const [latest, setLatest] = useState("none");
  useChannel(pusher, name, "created", window.handle ??= (order) => { window.latest = order; setLatest(order.id); });
  return <p>{useConnectionState(pusher)}: {latest}</p>;
}
const root = createRoot(document.querySelector("main"));
root.render(<StrictMode><Orders /></StrictMode>);
window.unmount = () => root.unmount();
"""
VUE = """
import { createApp, h, watch } from "vue";
const app = createApp({
  setup() {
    const latest = useLatest(pusher, name, "created");
    watch(latest, (order) => { window.latest = order; }, { flush: "sync" });
    return () => h("p", `connected: ${latest.value?.id ?? "none"}`);
  },
});
app.mount("main");
window.unmount = () => app.unmount();
"""

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


@pytest.mark.parametrize(("library", "component"), [("react", REACT), ("vue", VUE)], ids=["React", "Vue"])
def test_component_shows_the_newest_event_until_it_unmounts(
    production: servers.Server, window: OpenWindow, name: Name, library: str, component: str
) -> None:
    channel = name("orders")
    (code,) = [one.text for one in pages.blocks(PAGE) if f'from "{library}"' in one.text]
    client = CLIENT % (json.dumps(channel), json.dumps(production.application.key), production.port)
    with pusherjs.Runtime() as runtime:
        script = runtime.bundle(code + client + component)
    page = window()
    page.goto(production.url("/static/fanfare/site.css"))
    page.set_content("<!doctype html><main></main>")
    page.add_script_tag(content=script)
    expect(page.locator("p")).to_have_text("connected: none")
    page.wait_for_function("(name) => pusher.channel(name).subscribed", arg=channel)
    calls.publish(production, channel, "created", '{"id": 7}')
    expect(page.locator("p")).to_have_text("connected: 7")
    page.evaluate("unmount()")
    expect(page.locator("p")).to_have_count(0)
    page.evaluate("(name) => { pusher.channel(name).emit('created', { id: 8 }); }", channel)
    assert page.evaluate("latest") == {"id": 7}
