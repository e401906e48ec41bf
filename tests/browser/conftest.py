"""Fixtures for tests in Chromium."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request, expect, sync_playwright

from tests.harness import parts, servers

# Turn off Chromium's own requests, so that only requests of the pages are seen.
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    f"--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE {servers.HOST}",
]

PATIENCE_MS = 30_000
expect.set_options(timeout=PATIENCE_MS)

OpenWindow = Callable[[], Page]

# Chromium treats a page that a test fulfils as one of another network, which may not connect to this machine.
ALLOW_LOCAL = "--disable-features=LocalNetworkAccessChecks"


@pytest.fixture(scope="module")
def chromium(request: pytest.FixtureRequest) -> Iterator[Browser]:
    """One browser per module: Playwright's running event loop would block asynchronous tests of other modules. A module
    adds arguments of Chromium as `CHROMIUM_ARGUMENTS`."""
    arguments = [*ARGUMENTS, *getattr(request.module, "CHROMIUM_ARGUMENTS", ())]
    path = parts.executable(*parts.CHROMIUM_NAMES)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def debug(fleet: servers.Fleet) -> servers.Server:
    """The server of `make run`: uvicorn with DEBUG."""
    return fleet.start("uvicorn", fleet.deployment(FANFARE_DEBUG="1"))


@pytest.fixture(scope="session")
def production(fleet: servers.Fleet) -> servers.Server:
    """A production server: four workers without DEBUG."""
    return fleet.start("gunicorn")


@pytest.fixture(scope="session")
def daphne(fleet: servers.Fleet) -> servers.Server:
    return fleet.start("daphne")


@pytest.fixture
def window(chromium: Browser) -> Iterator[OpenWindow]:
    """`window()` opens a page with its own browser context. At the end, no page may have had an error or a request to
    another host.
    """
    problems: list[str] = []

    def on_console(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            problems.append(f"console {message.type}: {message.text}")

    def look_at(url: str) -> None:
        address = urlsplit(url)
        if address.hostname != servers.HOST and address.scheme not in ("data", "blob"):
            problems.append(f"request to another host: {url}")

    def on_failure(request: Request) -> None:
        if request.failure != "net::ERR_ABORTED":  # leaving a page aborts its pending requests
            problems.append(f"failed request: {request.url}: {request.failure}")

    contexts: list[BrowserContext] = []

    def open_window() -> Page:
        context = chromium.new_context()
        context.set_default_timeout(PATIENCE_MS)
        contexts.append(context)
        page = context.new_page()
        page.on("console", on_console)
        page.on("request", lambda request: look_at(request.url))
        page.on("websocket", lambda socket: look_at(socket.url))
        page.on("pageerror", lambda error: problems.append(f"exception in the page: {error}"))
        page.on("requestfailed", on_failure)
        return page

    yield open_window
    for context in contexts:
        context.close()
    assert problems == []
