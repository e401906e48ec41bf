"""Chromium's EventSource over a network that fails and returns."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page

from tests.browser.conftest import PATIENCE_MS
from tests.harness import calls, event_streams, proxies, servers, waiting

CHANNEL = "kept-news"
APART_S = 0.01  # between two events

LISTEN = """
url => {
  window.numbers = []; window.statements = []; window.unavailable = 0;
  window.source = new EventSource(url);
  source.onmessage = event => {
    const frame = JSON.parse(event.data);
    if (frame.event === 'tick') numbers.push(Number(frame.data));
  };
  source.addEventListener('stream', event => statements.push(...Object.values(JSON.parse(event.data).channels)));
  source.addEventListener('unavailable', () => window.unavailable += 1);
}
"""


@pytest.fixture(scope="module")
def server(fleet: servers.Fleet) -> Iterator[servers.Server]:
    deployment = fleet.deployment(FANFARE_SSE_LIFE="60")
    deployment.application = deployment.create_application(
        "Streams", "--history=*kept-*=200000,600", "--replay=*kept-*=50000,33554432", "--max-connections=2"
    )
    server = fleet.start("gunicorn", deployment)
    yield server
    server.stop()


@pytest.fixture
def page(chromium: Browser, server: servers.Server) -> Iterator[Page]:
    """A page of the server's origin. Its console is not checked, because the browser reports network errors there."""
    context = chromium.new_context()
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    page.goto(server.url("/health/live"))
    yield page
    context.close()


class Publisher(threading.Thread):
    """Publishes 0, 1, 2, … until `stop`."""

    def __init__(self, server: servers.Server, channel: str) -> None:
        super().__init__()
        self.published = 0
        self._server = server
        self._channel = channel
        self._stop_asked = threading.Event()

    def run(self) -> None:
        with calls.Caller(self._server) as caller:
            while not self._stop_asked.wait(APART_S):
                caller.publish(self._channel, "tick", str(self.published))
                self.published += 1

    def stop(self) -> None:
        self._stop_asked.set()
        self.join()


def listen(page: Page, server: servers.Server, *channels: str, **query: str) -> None:
    page.evaluate(LISTEN, server.url(event_streams.path(server.application, channels, **query)))


class Network:
    """The page's network, switched through one DevTools session: another session could not switch it on again."""

    def __init__(self, page: Page) -> None:
        self._session = page.context.new_cdp_session(page)
        self._session.send("Network.enable")

    def switch(self, *, on: bool) -> None:
        conditions = {"offline": not on, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        self._session.send("Network.emulateNetworkConditions", conditions)


def wait_for(page: Page, expression: str, within_s: float = 20.0) -> None:
    page.wait_for_function(expression, timeout=within_s * 1000)


def test_lost_network_neither_loses_nor_repeats_events(page: Page, server: servers.Server) -> None:
    """Chromium's offline mode refuses new connections only, so the proxy resets the open stream."""
    publisher = Publisher(server, CHANNEL)
    with proxies.in_front_of(server) as proxy:
        page.goto(proxy.url("/health/live"))
        network = Network(page)
        page.evaluate(LISTEN, proxy.url(event_streams.path(server.application, [CHANNEL])))
        wait_for(page, "statements.length === 1")
        publisher.start()
        try:
            for cut in range(1, 4):
                wait_for(page, f"numbers.length > {50 * cut}")
                seen = publisher.published
                network.switch(on=False)
                proxy.reset_all()
                wait_for(page, "source.readyState === EventSource.CONNECTING")
                while publisher.published < seen + 50:
                    time.sleep(APART_S)
                assert page.evaluate("numbers.length") < seen + 50, "the page is offline"
                network.switch(on=True)
                wait_for(page, f"statements.length === {cut + 1}")
        finally:
            publisher.stop()
        wait_for(page, f"numbers.length >= {publisher.published}")
    assert page.evaluate("numbers") == list(range(publisher.published))
    told = page.evaluate("statements")
    assert [one["recovered"] for one in told] == [False, True, True, True]
    assert all(one["replayed"] > 0 for one in told[1:]), "events were published while the page was offline"


def test_browser_recovers_after_all_workers_were_replaced(page: Page, server: servers.Server) -> None:
    channel = "kept-killed"
    listen(page, server, channel)
    wait_for(page, "statements.length === 1")
    calls.publish(server, channel, "tick", "0")
    wait_for(page, "numbers.length === 1")
    before = server.workers()
    for worker in before:
        os.kill(worker, signal.SIGTERM)
    wait_for(page, "source.readyState === EventSource.CONNECTING")
    publisher = Publisher(server, channel)
    # A stopping worker still answers and then closes the connection, so wait before publishing.
    waiting.until(lambda: not set(before) & set(server.workers()), 30, "the old workers have stopped")
    server.wait_until_ready()
    publisher.published = 1
    publisher.start()
    wait_for(page, "statements.length === 2 && numbers.length > 20")
    publisher.stop()
    wait_for(page, f"numbers.length >= {publisher.published}")
    assert page.evaluate("numbers") == list(range(publisher.published))


def test_expired_token_closes_the_event_source(page: Page, server: servers.Server) -> None:
    channel = "private-kept-1"
    token = event_streams.token(server.application, "private-kept-*", seconds=2)
    listen(page, server, channel, token=token)
    wait_for(page, "statements.length === 1")
    calls.publish(server, channel, "tick", "0")
    wait_for(page, "numbers.length === 1")
    wait_for(page, "source.readyState === EventSource.CLOSED")


def test_connection_limit_keeps_the_event_source_retrying(page: Page, server: servers.Server) -> None:
    """A 503 would close the EventSource permanently."""
    page.evaluate(
        "urls => { window.others = urls.map(url => new EventSource(url)); }",
        [server.url(event_streams.path(server.application, [name])) for name in ("a", "b")],
    )
    wait_for(page, "others.every(source => source.readyState === EventSource.OPEN)")
    listen(page, server, CHANNEL)
    wait_for(page, "unavailable >= 1")
    assert page.evaluate("source.readyState !== EventSource.CLOSED")
    page.evaluate("others.forEach(source => source.close())")
    wait_for(page, "statements.length === 1")


def test_page_of_another_origin_can_subscribe(page: Page, server: servers.Server) -> None:
    """An application without allowed origins accepts all origins."""
    with proxies.in_front_of(server) as elsewhere:
        page.goto(elsewhere.url("/health/live"))
        listen(page, server, CHANNEL)
        wait_for(page, "statements.length === 1")
