"""Follow the tutorial: run its commands and write its files in order, from an empty folder to a live page.

Three things differ from a person at a terminal. The clone is a copy of the working tree without ignored files. The
packages are not downloaded: `.venv` exists and uses those of the test, so `make run` has nothing to install. The
servers listen on a free port, set by `FANFARE_PORT` and gunicorn's own variable.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from tests.browser.conftest import PATIENCE_MS
from tests.harness import deployments, parts, servers, waiting
from tests.unit.docs import pages

TUTORIAL = pages.ROOT / "docs/tutorial/first-steps.md"

COMMAND_S = 60.0
START_S = 60.0  # `make run` migrates the database, hashes a password and starts a server with a reloader
STOP_S = 20.0
AFTER_A_RESTART_MS = 60_000  # pusher-js waits 15 s after a refused attempt, and the machine may be busy
QUICK_MS = 3_000  # takes milliseconds on an idle machine

BEA = "a-password-for-bea"


class Reader:
    """Runs the steps of the tutorial in a clone, with one process for the server and one for each other command."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port = folder, port
        self._server: subprocess.Popen[bytes] | None = None
        self._log = folder.parent / "server.log"
        self._steps = list(pages.steps(TUTORIAL))
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(deployments.OWN_PREFIXES)}
        self._environment = {
            **{name: value for name, value in inherited.items() if name not in deployments.OWN_NAMES},
            "FANFARE_PORT": str(port),
            "GUNICORN_CMD_ARGS": f"--bind {servers.HOST}:{port}",
            "PYTHONUNBUFFERED": "1",
        }

    def do(self, number: int) -> None:
        """Run the step with this number. A server command keeps running."""
        mine = [block for heading, block in self._steps if heading.startswith(f"{number}. ")]
        assert mine, f"the tutorial has no step {number}"
        self._steps = [step for step in self._steps if step[1] not in mine]
        for block in mine:
            if block.language == "shell":
                for command in block.text.splitlines():
                    self._type(command)
            else:
                pages.apply(self.folder / block.file, block)

    @property
    def left(self) -> list[str]:
        """The headings of the steps that were not run."""
        return [heading for heading, _ in self._steps]

    def url(self, path: str) -> str:
        """A URL of the tutorial with this reader's port."""
        address = f"http://127.0.0.1:8000{path}"
        assert f"`{address}`" in TUTORIAL.read_text(encoding="utf-8"), f"the tutorial does not name {address}"
        return address.replace("8000", str(self.port))

    def printed(self) -> str:
        """The output of the server."""
        return self._log.read_text(encoding="utf-8")

    def press_ctrl_c(self) -> None:
        """Send SIGINT to every process of the group, as a terminal does."""
        assert self._server is not None
        os.killpg(self._server.pid, signal.SIGINT)
        self._server.wait(STOP_S)
        waiting.until(lambda: not self._processes(), STOP_S, "all processes of the server have ended")
        self._server = None

    def leave(self) -> None:
        for process in self._processes():
            process.kill()

    def _type(self, command: str) -> None:
        if "gunicorn" in command or command == "make run":
            self._serve(command)
            return
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"

    def _serve(self, command: str) -> None:
        assert self._server is None, f"the tutorial starts a second server: {command}"
        with self._log.open("ab") as log:
            self._server = subprocess.Popen(
                ["bash", "-c", command],
                cwd=self.folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        waiting.until(self._answers, START_S, command)

    def _answers(self) -> bool:
        assert self._server is not None
        assert self._server.poll() is None, self.printed()
        try:
            with urllib.request.urlopen(f"http://{servers.HOST}:{self.port}/health/ready", timeout=5) as response:
                return bool(response.status == 200)
        except OSError:
            return False

    def _processes(self) -> list[psutil.Process]:
        return [] if self._server is None else servers.processes_of_group(self._server.pid)


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    clone = tmp_path / "fanfare"
    copy_as_git_would(clone)
    borrow_packages(clone)
    reader = Reader(clone, servers.free_port())
    yield reader
    reader.leave()


# What `make run` and `.ci/run` create in a folder without a git repository, such as an unpacked archive.
LEFT_BEHIND = shutil.ignore_patterns(".venv", "var", "node_modules", "__pycache__", ".*_cache", ".hypothesis", ".env")


def copy_as_git_would(clone: Path) -> None:
    if not (pages.ROOT / ".git").exists():
        shutil.copytree(pages.ROOT, clone, ignore=LEFT_BEHIND)
        return
    git = parts.executable("git")
    listing = subprocess.run(
        [git, "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=pages.ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listing.stdout.decode().split("\0")):
        if (pages.ROOT / name).is_file():  # a deleted but uncommitted file is still listed
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(pages.ROOT / name, clone / name)


def borrow_packages(clone: Path) -> None:
    """A `.venv` like that of `make run`, with the packages of the interpreter that runs this test."""
    venv.create(clone / ".venv", symlinks=True)
    python = clone / ".venv/bin/python"
    (own,) = (clone / ".venv/lib").glob("python*/site-packages")
    borrowed = dict.fromkeys(sysconfig.get_paths()[kind] for kind in ("purelib", "platlib"))
    (own / "borrowed.pth").write_text("\n".join(borrowed), encoding="utf-8")
    _, _, script = (Path(sys.executable).parent / "gunicorn").read_text(encoding="utf-8").partition("\n")
    (clone / ".venv/bin/gunicorn").write_text(f"#!{python}\n{script}", encoding="utf-8")
    (clone / ".venv/bin/gunicorn").chmod(0o755)
    # What `pip install --no-deps --editable .` leaves, which bootstrap.py looks for.
    information = own / "django_fanfare-0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: django-fanfare\nVersion: 0\n", encoding="utf-8")
    source = {"url": clone.as_uri(), "dir_info": {"editable": True}}
    (information / "direct_url.json").write_text(json.dumps(source), encoding="utf-8")
    (own / "django_fanfare.pth").write_text(str(clone / "apps"), encoding="utf-8")


class Visitor:
    """A browser context that collects the exceptions of its pages."""

    def __init__(self, browser: Browser, reader: Reader) -> None:
        self._reader = reader
        self.exceptions: list[str] = []
        self._context = browser.new_context()
        self._context.set_default_timeout(PATIENCE_MS)
        self._context.on("weberror", lambda error: self.exceptions.append(str(error.error)))

    def open(self, path: str) -> Page:
        page = self._context.new_page()
        page.goto(self._reader.url(path))
        return page

    def sign_in(self, name: str, password: str) -> Page:
        """Open the board, which redirects to the login form, and sign in there."""
        page = self.open("/board/")
        page.get_by_label("Username").fill(name)
        page.get_by_label("Password").fill(password)
        page.get_by_role("button", name="Log in").click()
        expect(page).to_have_url(self._reader.url("/board/"))
        return page

    def close(self) -> None:
        self._context.close()


def card(page: Page, text: str) -> Locator:
    return page.locator("#cards li", has_text=text)


def test_tutorial_leads_to_a_live_page(reader: Reader, chromium: Browser) -> None:
    admin, bea = Visitor(chromium, reader), Visitor(chromium, reader)

    reader.do(1)
    assert "Installing" not in reader.printed()
    printed = re.search(r"user admin, password (\S+)", reader.printed())
    assert printed, reader.printed()
    demo = admin.open("/demo/")
    expect(demo.get_by_text("Connected")).to_be_visible()
    demo.close()
    reader.press_ctrl_c()

    for number in (2, 3, 4, 5, 6):
        reader.do(number)
    first = admin.sign_in("admin", printed[1])
    second = admin.open("/board/")
    for page in (first, second):
        expect(page.locator("#here")).to_have_text("admin")
    first.get_by_label("A new card").fill("A card")
    first.get_by_role("button", name="Add").click()
    for page in (first, second):
        expect(card(page, "A card (admin)")).to_have_count(1)

    reader.do(7)
    private = bea.sign_in("bea", BEA)
    expect(card(private, "A card (admin)")).to_have_count(1)
    for page in (first, second, private):
        expect(page.locator("#here")).to_contain_text("admin")
        expect(page.locator("#here")).to_contain_text("bea")
    private.close()
    for page in (first, second):
        expect(page.locator("#here")).to_have_text("admin")

    reader.do(8)
    for page in (first, second):
        expect(card(page, "Hello from a shell")).to_have_count(1)

    keep_a_history(admin.open("/admin/"))
    for page in (first, second):
        waiting.until(lambda page=page: has_a_position_after_reload(page), START_S, "the rule has reached the server")
        expect(page.locator("#here")).to_have_text("admin")
        expect(card(page, "Hello from a shell")).to_have_count(0)
    reader.press_ctrl_c()
    reader.do(9)
    for page in (first, second):
        expect(card(page, "Published while no server ran")).to_have_count(1, timeout=AFTER_A_RESTART_MS)
        expect(card(page, "A card (admin)")).to_have_count(1)

    reader.press_ctrl_c()
    assert reader.left == []
    assert "Traceback" not in reader.printed()
    assert admin.exceptions == bea.exceptions == []
    admin.close()
    bea.close()


def keep_a_history(page: Page) -> None:
    """The steps in the admin of section 9."""
    page.get_by_role("link", name="Applications", exact=True).last.click()
    page.get_by_role("link", name="First application").click()
    page.get_by_role("button", name="Add another Channel rule").click()
    rule = page.locator("#rules-1")  # the first one is the demo's
    rule.get_by_label("Pattern").fill("presence-board")
    rule.get_by_label("History size").fill("100")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.locator(".messagelist")).to_contain_text("changed successfully")


def has_a_position_after_reload(page: Page) -> bool:
    """Reload the page. It has no position if the reload was faster than the new rule; then reload again."""
    page.reload()
    end = time.monotonic() + QUICK_MS / 1000
    # Not `wait_for_function`, whose eval the page's Content-Security-Policy refuses.
    while time.monotonic() < end:
        if page.evaluate("typeof fanfareResume === 'object' && 'presence-board' in fanfareResume.positions()"):
            return True
        page.wait_for_timeout(50)
    return False
