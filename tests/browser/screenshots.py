"""Take the pictures of the console in docs/images, with real clients and real faults.

    .venv/bin/python -m tests.browser.screenshots [NAME ...]

Without a name it takes all of them: overview, refusal, webhook, slow, worker, engine, landing. Needs Chromium and the
packages of `make test`. Compresses the pictures with pngquant if it is installed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from playwright.sync_api import Browser, Page, ViewportSize, expect, sync_playwright

from tests.harness import calls, deployments, parts, servers, stalled, wire

FOLDER: Final = deployments.REPOSITORY / "docs/images"
MOST_BYTES: Final = 150_000  # of one picture
SIZE: Final[ViewportSize] = {"width": 1280, "height": 760}
PATIENCE_MS: Final = 60_000
PUSHER: Final = "/static/fanfare/vendor/pusher-js/pusher.min.js"
UNREACHABLE: Final = "http://127.0.0.1:9/hooks"
EVERY_S: Final = 0.05  # between two events

CONNECT: Final = """
([key, port, channels]) => new Promise((resolve) => {
  window.pusher = new Pusher(key, {
    cluster: "", wsHost: "127.0.0.1", wsPort: port, forceTLS: false, enabledTransports: ["ws"],
    channelAuthorization: { customHandler: (_, done) => done(null, { auth: `${key}:${"0".repeat(64)}` }) },
  });
  pusher.connection.bind("connected", resolve);
  for (const channel of channels) pusher.subscribe(channel);
})
"""


class Stage:
    """A server with an application, a browser that is logged in to its admin, and clients with pusher-js."""

    def __init__(self, fleet: servers.Fleet, browser: Browser, command: str, **environment: str) -> None:
        deployment = fleet.deployment(**environment)
        hooks = ("--webhook", UNREACHABLE) if "FANFARE_WEBHOOKS_ALLOW_PRIVATE" in environment else ()
        self.shop = deployment.create_application("Shop", *hooks)
        self.server = fleet.start(command, deployment)
        self._browser = browser
        self.admin = self.window()
        self.admin.goto(self.server.url("/admin/"))
        self.admin.get_by_label("Username").fill(deployments.ADMIN_NAME)
        self.admin.get_by_label("Password").fill(deployments.ADMIN_PASSWORD)
        self.admin.get_by_role("button", name="Log in").click()
        expect(self.admin.locator("#user-tools")).to_be_visible()

    def window(self) -> Page:
        context = self._browser.new_context(
            viewport=SIZE, color_scheme="light", reduced_motion="reduce", locale="en-GB"
        )
        context.set_default_timeout(PATIENCE_MS)
        return context.new_page()

    def console(self, path: str = "") -> Page:
        self.admin.goto(self.server.url(f"/admin/fanfare/console/{path}"))
        return self.admin

    def client(self, *channels: str) -> Page:
        page = self.window()
        page.goto(self.server.url("/static/fanfare/site.css"))  # a document of this origin without a script
        page.add_script_tag(url=self.server.url(PUSHER))
        page.evaluate(CONNECT, [self.shop.key, self.server.port, list(channels)])
        return page

    @contextlib.contextmanager
    def events(self, data: str, *channels: str) -> Iterator[None]:
        """Publish to the channels in turn until the block ends."""
        ended = threading.Event()

        def publish() -> None:
            with calls.Caller(self.server, self.shop) as caller:
                number = 0
                while not ended.wait(EVERY_S):
                    caller.publish(channels[number % len(channels)], "updated", data)
                    number += 1

        thread = threading.Thread(target=publish)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    @contextlib.contextmanager
    def slow_reader(self, channel: str) -> Iterator[None]:
        target = f"/app/{self.shop.key}?protocol=7&client=pusher-websocket-java&version=2.4.4"
        with wire.Wire(self.server.port, target, receive_buffer=4_096) as socket:
            frame = json.dumps({"event": "pusher:subscribe", "data": {"channel": channel}})
            socket.send(wire.WireFrame(wire.TEXT, frame.encode()))
            yield


def overview(stage: Stage) -> Page:
    for channels in (["orders", "prices"], ["orders"], ["prices", "cache-weather"], ["cache-weather"]):
        stage.client(*channels)
    page = stage.console()
    with stage.events('{"id": 42}', "orders", "prices", "cache-weather"):
        expect(page.locator("#charts canvas").first).to_be_visible()
        page.wait_for_timeout(75_000)  # the charts have a sample every ten seconds
    return page


def refusal(stage: Stage) -> Page:
    stage.client("private-orders-7")
    page = stage.console("doctor/")
    page.locator("#refusals").get_by_role("button", name="Examine").first.click()
    expect(page.locator("#diagnosis")).to_contain_text("The server refuses it.")
    page.evaluate("scrollTo(0, 0)")
    return page


def webhook(stage: Stage) -> Page:
    stage.client("orders")
    page = stage.console("webhooks/")
    expect(page.locator("#deliveries tr").first).to_contain_text("orders")
    expect(page.locator("#deliveries tr").first).not_to_contain_text("not sent yet")
    return page


def slow(stage: Stage) -> Page:
    stage.client("prices")
    page = stage.console("connections/?sort=buffered")
    with stage.slow_reader("prices"), stage.events(json.dumps("x" * 20_000), "prices"):
        expect(page.locator("#connections tr").first).to_contain_text("kB")
        shoot(page, "slow")
    return page


def worker(stage: Stage) -> Page:
    """The first worker stops answering, as one that hangs does."""
    page = stage.console()
    expect(page.locator("#workers tr")).to_have_count(4)
    pid = stage.server.workers()[0]
    os.kill(pid, signal.SIGSTOP)
    try:
        expect(page.locator("#verdict")).to_contain_text("did not answer")
        shoot(page, "worker")
    finally:
        os.kill(pid, signal.SIGCONT)
    return page


def engine(stage: Stage) -> Page:
    stage.client("orders")
    page = stage.console()
    expect(page.locator("#workers tr")).to_have_count(1)
    urllib.request.urlopen(stage.server.url("/stalled")).close()
    expect(page.locator("#verdict")).to_contain_text("has not read back")
    return page


def landing(stage: Stage) -> Page:
    page = stage.window()
    page.goto(stage.server.url("/"))
    page.wait_for_function("pusher.channel('orders').subscribed")
    page.locator("#publish").get_by_role("button", name="Publish").click()
    expect(page.locator("#heard li")).to_have_count(1)
    page.get_by_role("tab", name="Python").click()
    page.locator("#start").evaluate("(heading) => heading.scrollIntoView()")
    return page


Scene = Callable[[Stage], Page]

# By name: the command of the server, its settings, and the scene.
SCENES: Final[dict[str, tuple[str, dict[str, str], Scene]]] = {
    "overview": ("gunicorn", {}, overview),
    "refusal": ("gunicorn", {}, refusal),
    "webhook": ("gunicorn", {"FANFARE_WEBHOOKS_ALLOW_PRIVATE": "1"}, webhook),
    "slow": ("gunicorn", {}, slow),
    "worker": ("gunicorn", {}, worker),
    "engine": ("uvicorn", stalled.MOUNT, engine),
    "landing": ("uvicorn", {"FANFARE_DEBUG": "1"}, landing),
}
TAKEN_INSIDE: Final = ("slow", "worker")  # their fault lasts only as long as the scene


def shoot(page: Page, name: str) -> None:
    path = FOLDER / f"console-{name}.png"
    page.screenshot(path=path, animations="disabled")
    pngquant = shutil.which("pngquant")
    if pngquant:
        subprocess.run([pngquant, "--force", "--skip-if-larger", "--output", path, path], check=False)
    size = path.stat().st_size
    print(f"{path.relative_to(deployments.REPOSITORY)}: {size:,} bytes")
    if size > MOST_BYTES:
        sys.exit(f"{path.name} has {size:,} bytes; {MOST_BYTES:,} are allowed. Install pngquant.")


def main() -> None:
    parser = argparse.ArgumentParser(description="Take the pictures of the console in docs/images.")
    parser.add_argument("names", nargs="*", choices=[*SCENES, []], metavar="NAME", help=", ".join(SCENES))
    names: Any = parser.parse_args().names or list(SCENES)
    expect.set_options(timeout=PATIENCE_MS)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        fleet = servers.Fleet(Path(folder))
        browser = playwright.chromium.launch(
            executable_path=parts.executable(*parts.CHROMIUM_NAMES), args=["--no-sandbox", "--disable-gpu"]
        )
        try:
            for name in names:
                command, environment, scene = SCENES[name]
                stage = Stage(fleet, browser, command, **environment)
                page = scene(stage)
                if name not in TAKEN_INSIDE:
                    shoot(page, name)
                stage.server.stop()
        finally:
            browser.close()
            fleet.stop()


if __name__ == "__main__":
    main()
