"""The browser plugin in Chromium, as a classic script and as a module, over breaking connections."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

import pytest
from playwright.sync_api import Browser, Page

from tests.browser.conftest import PATIENCE_MS
from tests.harness import servers, streams, threads

Stream = threads.InThread[streams.StreamServer]

CUTS = 3
EVENTS_A_CUT = 200

CLASSIC = {"url": "/static/fanfare/resume.js"}
MODULE = {
    "type": "module",
    "content": 'import { install } from "/static/fanfare/resume.mjs"; window.FanfareResume = { install };',
}
FOLLOW = """
([port, storage]) => {
  window.numbers = [];
  window.subscriptions = 0;
  window.resets = [];
  window.plugin = FanfareResume.install(Pusher, {
    jitter: 100,
    onReset: (...reset) => resets.push(reset),
    storage: storage ? sessionStorage : null,
  });
  window.pusher = new Pusher("key", {
    cluster: "", wsHost: "127.0.0.1", wsPort: port, forceTLS: false, enabledTransports: ["ws"],
  });
  const channel = pusher.subscribe("orders");
  channel.bind("counted", ({ n }) => numbers.push(n));
  channel.bind("pusher:subscription_succeeded", () => { subscriptions += 1; });
}
"""


@pytest.fixture
def stream() -> Iterator[Stream]:
    with threads.in_thread(streams.StreamServer().running()) as stream:
        yield stream


@pytest.fixture
def page(chromium: Browser, debug: servers.Server) -> Iterator[Page]:
    """A page of Fanfare's origin, which serves the plugin. Connection errors are expected, exceptions are not."""
    context = chromium.new_context()
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    page.add_init_script("window.exceptions = []; addEventListener('error', (e) => exceptions.push(e.message));")
    yield page
    assert page.evaluate("exceptions") == []
    context.close()


def follow(
    page: Page,
    server: servers.Server,
    stream: Stream,
    script: Mapping[str, str] = CLASSIC,
    *,
    storage: bool = False,
) -> None:
    page.goto(server.url("/static/fanfare/site.css"))  # a document of this origin without a script
    page.add_script_tag(url="/static/fanfare/vendor/pusher-js/pusher.min.js")
    page.add_script_tag(**script)
    page.wait_for_function("window.FanfareResume")
    page.evaluate(FOLLOW, [stream.resource.port, storage])
    page.wait_for_function("subscriptions === 1")


def publish(stream: Stream, count: int) -> int:
    """Publish `count` events at about 1,000 a second; returns the number of the last one."""
    log = stream.resource.logs["orders"]
    for _ in range(count):
        stream.do(lambda: stream.resource.publish("orders", {"n": len(log) + 1}))
        time.sleep(0.001)
    return len(log)


@pytest.mark.parametrize("script", [CLASSIC, MODULE], ids=["classic script", "module"])
def test_every_event_is_delivered_once_and_in_order_over_breaking_connections(
    page: Page, debug: servers.Server, stream: Stream, script: Mapping[str, str]
) -> None:
    follow(page, debug, stream, script)
    for cut in range(1, CUTS + 1):
        publish(stream, EVENTS_A_CUT)
        stream.do(stream.resource.reset_connections)
        publish(stream, EVENTS_A_CUT)  # to no subscriber
        page.wait_for_function("cut => subscriptions === cut + 1", arg=cut)
    last = publish(stream, 1)
    page.wait_for_function("last => numbers.includes(last)", arg=last)
    assert page.evaluate("numbers") == list(range(1, last + 1))
    assert page.evaluate("resets") == []
    assert page.evaluate("plugin.positions()") == {"orders": {"epoch": "epoch001", "offset": last}}


def test_reload_with_storage_misses_no_event(page: Page, debug: servers.Server, stream: Stream) -> None:
    follow(page, debug, stream, storage=True)
    page.wait_for_function("last => numbers.includes(last)", arg=publish(stream, 5))
    page.goto("about:blank")
    last = publish(stream, 5)
    follow(page, debug, stream, storage=True)
    page.wait_for_function("last => numbers.includes(last)", arg=last)
    assert page.evaluate("numbers") == list(range(6, last + 1))


def test_history_is_read_page_by_page(page: Page, debug: servers.Server, stream: Stream) -> None:
    follow(page, debug, stream)
    publish(stream, 5)
    read = """
    async () => {
      const pages = [];
      let before = null;
      do {
        const page = await plugin.history(pusher, "orders", { before, limit: 2 });
        pages.push(page.items.map(({ data }) => data.n));
        before = page.next;
      } while (before);
      return pages;
    }
    """
    assert page.evaluate(read) == [[5, 4], [3, 2], [1]]


def test_page_is_back_within_seconds_after_each_of_several_restarts(
    page: Page, debug: servers.Server, stream: Stream
) -> None:
    follow(page, debug, stream)
    page.evaluate("() => { window.failures = 0; pusher.connection.bind('unavailable', () => { failures += 1; }); }")
    for restart, outage_s in enumerate((0.5, 2.0, 4.0, 6.0), 1):
        stream.run(lambda outage_s=outage_s: stream.resource.outage(outage_s), timeout_s=30)
        returned = time.monotonic()
        page.wait_for_function("count => subscriptions === count", arg=restart + 1)
        assert time.monotonic() - returned < 3.0
        last = publish(stream, 5)
        page.wait_for_function("last => numbers.includes(last)", arg=last)
    assert page.evaluate("numbers") == list(range(1, last + 1))
    assert page.evaluate("failures") == 0
