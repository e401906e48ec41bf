"""Chromium loses its network while events are published: plain pusher-js, with a token, and with the plugin."""

from __future__ import annotations

import json
from collections.abc import Iterator
from uuid import uuid4

import pytest
from playwright.sync_api import Browser, CDPSession, Page

from tests.browser.conftest import PATIENCE_MS
from tests.harness import calls, deployments, servers, signing

CUTS = 3
EVENTS_A_CUT = 50
CHANNEL = "private-orders"

OFFLINE = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
ONLINE = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}

# The client detects a dead connection by an unanswered ping, here after half a second.
FOLLOW = """
([key, port, path, plugin]) => {
  Object.assign(window, { numbers: [], subscriptions: 0, losses: [] });
  if (plugin) {
    window.plugin = FanfareResume.install(Pusher, { jitter: 200, onReset: (...loss) => losses.push(loss) });
  }
  window.client = new Pusher(key, {
    cluster: "", wsHost: "127.0.0.1", wsPort: port, wsPath: path, forceTLS: false, enabledTransports: ["ws"],
    activityTimeout: 2000, pongTimeout: 500,
    channelAuthorization: {
      customHandler: ({ socketId }, callback) => sign(socketId).then((auth) => callback(null, { auth })),
    },
  });
  const channel = client.subscribe("private-orders");
  channel.bind("counted", ({ n }) => numbers.push(n));
  channel.bind("pusher:subscription_succeeded", () => { subscriptions += 1; });
  channel.bind("pusher:resume_failed", (loss) => losses.push(loss));
}
"""


@pytest.fixture(scope="module")
def application(production: servers.Server) -> deployments.Application:
    """An application whose private channels keep and replay an hour of history."""
    flags = ["--history", "private-*=1000,3600", "--replay", "private-*=1000,1048576"]
    return production.deployment.create_application("Streams", *flags)


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    context = chromium.new_context()
    context.set_default_timeout(PATIENCE_MS)
    yield context.new_page()
    context.close()


@pytest.fixture
def network(page: Page) -> CDPSession:
    session = page.context.new_cdp_session(page)
    session.send("Network.enable")
    return session


class Traffic:
    """Publishes events while the page's network is switched off and on."""

    def __init__(self, page: Page, network: CDPSession, server: servers.Server, publisher: calls.Caller) -> None:
        self.published = 0
        self._page, self._network, self._server, self._publisher = page, network, server, publisher

    def follow(self, path: str, *, plugin: bool) -> None:
        server, application = self._server, self._publisher.application
        self._page.goto(server.url("/static/fanfare/site.css"))  # a document of this origin without a script
        self._page.expose_function("sign", lambda socket_id: signing.subscription(application, socket_id, CHANNEL))
        self._page.add_script_tag(url="/static/fanfare/vendor/pusher-js/pusher.min.js")
        self._page.add_script_tag(url="/static/fanfare/resume.js")
        self._page.evaluate(FOLLOW, [application.key, server.port, path, plugin])
        self._page.wait_for_function("subscriptions === 1")

    def publish(self) -> None:
        for _ in range(EVENTS_A_CUT):
            self.published += 1
            data = json.dumps({"n": self.published})
            assert self._publisher.publish(CHANNEL, "counted", data).status == 200

    def cut_repeatedly(self) -> None:
        for cut in range(1, CUTS + 1):
            self.publish()
            self._network.send("Network.emulateNetworkConditions", OFFLINE)
            self.publish()
            self._page.wait_for_function("client.connection.state === 'connecting'")
            self.publish()
            self._network.send("Network.emulateNetworkConditions", ONLINE)
            self._page.wait_for_function("cut => subscriptions === cut + 1", arg=cut)
        self.publish()
        self._page.wait_for_function("last => numbers.includes(last)", arg=self.published)

    @property
    def expected(self) -> list[int]:
        return list(range(1, self.published + 1))


@pytest.fixture
def traffic(
    page: Page, network: CDPSession, production: servers.Server, application: deployments.Application
) -> Iterator[Traffic]:
    with calls.Caller(production, application) as publisher:
        yield Traffic(page, network, production, publisher)


def test_plugin_delivers_every_event_once_and_in_order(page: Page, traffic: Traffic) -> None:
    traffic.follow("", plugin=True)
    traffic.cut_repeatedly()
    assert page.evaluate("numbers") == traffic.expected
    assert page.evaluate("losses") == []


def test_plain_pusher_js_with_a_token_in_its_path_misses_no_event(page: Page, traffic: Traffic) -> None:
    """Events since the last acknowledgement are delivered again."""
    traffic.follow(f"/s/{uuid4().hex}", plugin=False)
    traffic.cut_repeatedly()
    first_seen = list(dict.fromkeys(page.evaluate("numbers")))
    assert first_seen == traffic.expected
    assert page.evaluate("losses") == []


def test_pusher_js_without_token_misses_events(page: Page, traffic: Traffic) -> None:
    """Shows that the cuts are effective."""
    traffic.follow("", plugin=False)
    traffic.cut_repeatedly()
    assert set(page.evaluate("numbers")) < set(traffic.expected)
