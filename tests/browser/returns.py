"""How soon pages in Chromium are back after their server was away.

    python -m tests.browser.returns --tries 100

Each outage closes the port for 2 to 20 s: connections are reset, and new ones are refused. The pages use the plugin
with its default options. Prints the seconds from the server's return until each page is connected; exits with 1 if
fewer than 99 of 100 are back within 3 s.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

from playwright.async_api import Browser, Page, async_playwright

from tests.browser.conftest import ARGUMENTS
from tests.harness import parts, proxies, servers

AWAY_S = (2.0, 20.0)
WITHIN_S = 3.0
SHARE = 0.99
PATIENCE_S = 60.0
PAGES = 5  # at the same time; more keep two cores too busy to measure

START = """
([key, port]) => new Promise((resolve) => {
  window.FanfareResume.install(Pusher);
  window.client = new Pusher(key, {
    cluster: "", wsHost: "127.0.0.1", wsPort: port, forceTLS: false, enabledTransports: ["ws"],
  });
  client.connection.bind("state_change", ({ current }) => reported(current));
  client.connection.bind("connected", resolve);
})
"""


class Outage(proxies.TcpProxy):
    """A proxy whose port can be closed for a while."""

    @contextlib.asynccontextmanager
    async def away(self) -> AsyncIterator[None]:
        self._listener.close()
        self.reset_all()
        yield
        await self._listen()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Outage]:
        await self._listen()
        try:
            yield self
        finally:
            self._listener.close()
            self.reset_all()
            await asyncio.gather(*self._open, return_exceptions=True)

    async def _listen(self) -> None:
        self._listener = await asyncio.start_server(self._accepted, servers.HOST, self.port, reuse_address=True)
        self.port = self._listener.sockets[0].getsockname()[1]


class Watched:
    """A page with a client."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.connected = asyncio.Event()
        self.lost = asyncio.Event()
        self.connected_s = 0.0

    async def start(self, server: servers.Server, port: int) -> None:
        await self.page.goto(server.url("/static/fanfare/site.css"))
        await self.page.add_script_tag(url="/static/fanfare/vendor/pusher-js/pusher.min.js")
        await self.page.add_script_tag(url="/static/fanfare/resume.js")
        await self.page.expose_function("reported", self._reported)
        await self.page.evaluate(START, [server.application.key, port])

    def _reported(self, state: str) -> None:
        if state == "connected":
            self.connected_s = time.monotonic()
            self.connected.set()
        else:
            self.lost.set()
            self.connected.clear()


async def outage(browser: Browser, server: servers.Server, pages: int, away_s: float) -> list[float]:
    """The seconds from the return of the port until each page is connected."""
    async with contextlib.AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(Outage(lambda: server.port).running())
        watched = []
        for _ in range(pages):
            context = await browser.new_context()
            stack.push_async_callback(context.close)
            watched.append(Watched(await context.new_page()))
        for one in watched:
            await one.start(server, proxy.port)
        async with proxy.away():
            for one in watched:
                await asyncio.wait_for(one.lost.wait(), PATIENCE_S)
            await asyncio.sleep(away_s)
        returned_s = time.monotonic()
        for one in watched:
            await asyncio.wait_for(one.connected.wait(), PATIENCE_S)
        return [one.connected_s - returned_s for one in watched]


async def measure(server: servers.Server, tries: int) -> list[float]:
    found: list[float] = []
    async with async_playwright() as playwright:
        while len(found) < tries:
            # A browser counts failed WebSockets and delays further ones, so each outage has a new one.
            path = parts.executable(*parts.CHROMIUM_NAMES)
            browser = await playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
            away_s = random.uniform(*AWAY_S)
            found += await outage(browser, server, min(PAGES, tries - len(found)), away_s)
            await browser.close()
            print(f"away {away_s:.1f} s, back after {', '.join(f'{one:.1f}' for one in found[-PAGES:])} s", flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.browser.returns")
    parser.add_argument("--tries", type=int, default=100)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fanfare-returns-") as folder:
        fleet = servers.Fleet(Path(folder))
        try:
            found = sorted(asyncio.run(measure(fleet.start("uvicorn"), options.tries)))
        finally:
            fleet.stop()
    within = sum(one <= WITHIN_S for one in found)
    median, longest = statistics.median(found), found[-1]
    print(f"{within} of {len(found)} within {WITHIN_S:g} s; median {median:.1f} s, longest {longest:.1f} s")
    return 0 if within >= SHARE * len(found) else 1


if __name__ == "__main__":
    sys.exit(main())
