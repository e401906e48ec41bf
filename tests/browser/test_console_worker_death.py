"""Console pages that are open while the worker that serves them is killed."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from uuid import uuid4

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.conftest import PATIENCE_MS
from tests.browser.test_admin import log_in
from tests.harness import calls, servers

# Records every text of the state line, however short it is shown.
RECORD = """
const state = document.getElementById("console-state");
window.states = [state.textContent];
new MutationObserver(() => states.push(state.textContent)).observe(state, { childList: true, subtree: true });
"""


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    """Not a `window`: the browser reports the lost connection on its console."""
    context = chromium.new_context()
    context.set_default_timeout(PATIENCE_MS)
    yield context.new_page()
    context.close()


def killed_worker(page: Page) -> int:
    """Kill the worker that serves the page; its process id."""
    expect(page.locator("#console-state")).to_have_text("Live")
    page.evaluate(RECORD)
    pid = int(page.locator("#console-state").get_attribute("data-worker").split()[0])  # type: ignore[union-attr]
    os.kill(pid, signal.SIGKILL)
    expect(page.locator("#console-state")).not_to_have_attribute("data-worker", re.compile(rf"^{pid} "))
    expect(page.locator("#console-state")).to_have_text("Live")
    assert any(f"The connection to the worker {pid} of" in text for text in page.evaluate("states"))
    return pid


def test_pages_name_the_killed_worker_and_go_on_at_another_one(
    start: Callable[..., servers.Server], page: Page
) -> None:
    server = start("gunicorn pair")
    channel = f"orders-{uuid4().hex[:8]}"
    log_in(page, server)
    page.goto(server.url(f"/admin/fanfare/console/tail/?app={server.application.id}&channel={channel}"))
    expect(page.locator("#console-state")).to_have_text("Live")
    assert calls.publish(server, channel, "before", "{}").status == 200
    expect(page.locator("#items > li")).to_have_count(1)

    killed_worker(page)
    gap = page.locator('#items > li[data-type="gap"]')
    expect(gap.first).to_contain_text("not shown")
    # Live again: the next event is shown, and stands above the gap.
    assert calls.publish(server, channel, "after", "{}").status == 200
    expect(page.locator("#items > li").first).to_contain_text("after")
    expect(page.locator("#items > li").last).to_contain_text("before")

    page.goto(server.url("/admin/fanfare/console/"))
    pid = killed_worker(page)
    expect(page.locator("#workers tr")).to_have_count(2)  # the new worker is there
    expect(page.locator("#content")).to_contain_text(re.compile(r"\d workers? died in the last 5 minutes"))
    for one, count in [(pid, 0), *((other, 1) for other in server.workers())]:
        cell = page.locator("#workers tr > :first-child", has_text=re.compile(rf"\s{one}\s*$"))
        expect(cell).to_have_count(count)


def test_two_servers_of_one_machine_are_two_nodes(start: Callable[..., servers.Server], page: Page) -> None:
    first = start("gunicorn pair")
    second = start("uvicorn", first.deployment)
    log_in(page, second)
    page.goto(second.url("/admin/fanfare/console/"))
    expect(page.locator("#verdict")).to_contain_text("3 workers on 2 nodes")
    page.goto(second.url("/admin/fanfare/console/workers/"))
    for one, count in ((first, 2), (second, 1)):
        table = page.locator("#nodes table", has_text=f", server {one.main_pid}:")
        expect(table.locator("tbody tr")).to_have_count(count)
