"""The example docs/examples/chat in Chromium: answers survive a reload, kill -9 of all workers and a deploy."""

from __future__ import annotations

import importlib.util
import itertools
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from playwright.sync_api import Browser, Locator, Page

from tests.harness import guides, packages, servers, waiting
from tests.unit.docs import pages

EXAMPLE = pages.ROOT / "docs/examples/chat"
PATIENCE_S = 120.0
NO_TOKEN_TWICE = """() => {
  const shown = (window.shown = []);
  new MutationObserver(() => {
    const text = document.querySelector("#turns li:last-child p")?.textContent ?? "";
    if (text !== shown.at(-1)) shown.push(text);
  }).observe(document.getElementById("turns"), { childList: true, subtree: true, characterData: true });
}"""


class Example(guides.Process):
    """The server of the example's README, on a free port."""

    def __init__(self, folder: Path) -> None:
        root = folder / "chat"
        shutil.copytree(EXAMPLE, root, ignore=shutil.ignore_patterns("var", "*.sqlite3*", "__pycache__"))
        environment = packages.clean_environment(
            {"PYTHONPATH": str(pages.ROOT / "apps"), "PYTHONWARNINGS": "default", "PYTHONUNBUFFERED": "1"}
        )
        command = ""
        for heading, block in pages.steps(EXAMPLE / "README.md"):
            if heading != "1. Run it":
                continue
            for line in block.text.splitlines():
                program, *arguments = line.split()
                if program == "python":
                    packages.run([sys.executable, *arguments], cwd=root, environment=environment)
                elif program == "gunicorn":
                    command = line
        port = servers.free_port()
        gunicorn = str(Path(sys.executable).parent / "gunicorn")
        words = [gunicorn, *command.split()[1:], "-b", f"{servers.HOST}:{port}"]
        super().__init__(words, port, root, environment, folder / "server.log", "/health/ready")

    def workers(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children()

    def kill_workers(self) -> None:
        for worker in self.workers():
            worker.kill()

    def reload(self) -> None:
        os.kill(self.process.pid, signal.SIGHUP)


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Example]:
    found = Example(tmp_path_factory.mktemp("example"))
    yield found
    found.stop()


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    """Its console has errors while the server is away."""
    context = chromium.new_context()
    context.set_default_timeout(PATIENCE_S * 1000)
    yield context.new_page()
    context.close()


def answer_of(question: str) -> str:
    """The whole answer of the example's fake model."""
    spec = importlib.util.spec_from_file_location("fake_model", EXAMPLE / "chat/fake_model.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return "".join(module.answer(question))


@pytest.mark.parametrize("path", ["/", "/plain/"], ids=["plugin", "pusher-js"])
def test_answer_survives_reload_kill_and_deploy(example: Example, page: Page, path: str) -> None:
    whole = answer_of(f"How? {path}")
    page.goto(example.url(path))
    ask(page, f"How? {path}")
    text = page.locator("#turns li:last-child p")
    until_tokens(text, 10)

    page.reload()
    page.evaluate(NO_TOKEN_TWICE)
    shown = until_tokens(text, 25)
    assert whole.startswith(shown)

    example.kill_workers()
    shown = until_tokens(text, count(shown) + 40)
    assert whole.startswith(shown)

    example.reload()
    waiting.until(lambda: text.text_content() == whole, PATIENCE_S, "the answer is complete")
    waiting.until(
        lambda: page.locator("#turns li:last-child").get_attribute("data-state") == "done", PATIENCE_S, "it is done"
    )
    steps = page.evaluate("window.shown")
    assert len(steps) > 10
    for step in steps:
        assert whole.startswith(step), "a token is missing, or came twice"
    for earlier, later in itertools.pairwise(steps):
        assert later.startswith(earlier), "the text has become shorter"

    waiting.until(lambda: page.goto(example.url(path)).status == 200, PATIENCE_S, "the page is served again")
    assert text.text_content() == whole


def test_visitor_stops_an_answer(example: Example, page: Page) -> None:
    page.goto(example.url("/"))
    ask(page, "Stop?")
    text = page.locator("#turns li:last-child p")
    until_tokens(text, 3)
    page.get_by_role("button", name="Stop").click()
    turn = page.locator("#turns li:last-child")
    waiting.until(lambda: turn.get_attribute("data-state") == "cancelled", PATIENCE_S, "the answer is cancelled")
    shown = text.text_content() or ""
    assert answer_of("Stop?").startswith(shown)
    assert shown != answer_of("Stop?")


def ask(page: Page, question: str) -> None:
    """Send the form again while the server restarts after an earlier test."""
    page.locator("input[name=question]").fill(question)

    def asked() -> bool:
        with page.expect_response("**/ask/") as answer:
            page.get_by_role("button", name="Ask").click()
        return answer.value.status == 204

    waiting.until(asked, PATIENCE_S, "the question is stored")


def until_tokens(text: Locator, number: int) -> str:
    """The text, once it has so many tokens."""
    waiting.until(lambda: count(text.text_content() or "") >= number, PATIENCE_S, f"{number} tokens are shown")
    return text.text_content() or ""


def count(text: str) -> int:
    return text.count(" ")
