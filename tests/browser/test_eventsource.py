"""A browser's own EventSource, and a network that goes and comes back."""

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
APART_S = 0.01  # between two events: a busy channel

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
    """A page of the server's own. Its console is not looked at: a browser reports there that the network is gone."""
    context = chromium.new_context()
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    page.goto(server.url("/health/live"))
    yield page
    context.close()


class Publisher(threading.Thread):
    """Publishes 0, 1, 2, … until it is stopped."""

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
    """The page's network, through one DevTools session: what one session switched off, another cannot switch on."""

    def __init__(self, page: Page) -> None:
        self._session = page.context.new_cdp_session(page)
        self._session.send("Network.enable")

    def switch(self, *, on: bool) -> None:
        conditions = {"offline": not on, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        self._session.send("Network.emulateNetworkConditions", conditions)


def wait_for(page: Page, expression: str, within_s: float = 20.0) -> None:
    page.wait_for_function(expression, timeout=within_s * 1000)


def test_a_cut_network_loses_and_repeats_nothing(page: Page, server: servers.Server) -> None:
    """Chromium's own switch refuses what is new and leaves an open stream alone, so that one is reset."""
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
                assert page.evaluate("numbers.length") < seen + 50, "the network is really gone"
                network.switch(on=True)
                wait_for(page, f"statements.length === {cut + 1}")
        finally:
            publisher.stop()
        wait_for(page, f"numbers.length >= {publisher.published}")
    assert page.evaluate("numbers") == list(range(publisher.published))
    told = page.evaluate("statements")
    assert [one["recovered"] for one in told] == [False, True, True, True]
    assert all(one["replayed"] > 0 for one in told[1:]), "events came while the network was away"


def test_a_killed_worker_is_nothing_to_a_browser(page: Page, server: servers.Server) -> None:
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
    # One that stops still answers, and then ends the publisher's connection.
    waiting.until(lambda: not set(before) & set(server.workers()), 30, "the workers are gone")
    server.wait_until_ready()
    publisher.published = 1
    publisher.start()
    wait_for(page, "statements.length === 2 && numbers.length > 20")
    publisher.stop()
    wait_for(page, f"numbers.length >= {publisher.published}")
    assert page.evaluate("numbers") == list(range(publisher.published))


def test_an_expired_token_stops_the_browser_for_good(page: Page, server: servers.Server) -> None:
    channel = "private-kept-1"
    token = event_streams.token(server.application, "private-kept-*", seconds=2)
    listen(page, server, channel, token=token)
    wait_for(page, "statements.length === 1")
    calls.publish(server, channel, "tick", "0")
    wait_for(page, "numbers.length === 1")
    wait_for(page, "source.readyState === EventSource.CLOSED")


def test_a_full_application_keeps_the_browser_trying(page: Page, server: servers.Server) -> None:
    """It would give up for good on a 503."""
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


def test_a_page_of_another_origin_may_read(page: Page, server: servers.Server) -> None:
    """An application without a list of origins is open to all of them."""
    with proxies.in_front_of(server) as elsewhere:
        page.goto(elsewhere.url("/health/live"))
        listen(page, server, CHANNEL)
        wait_for(page, "statements.length === 1")
