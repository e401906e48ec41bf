"""The demo's room in a real browser: two windows side by side, with pusher-js as it is vendored."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from tests.browser.conftest import OpenWindow
from tests.harness import servers

AFTER_A_RESTART_MS = 60_000  # pusher-js waits for 15 s after an attempt that found nobody, and the machine is busy


@pytest.fixture(params=["debug", "production", "daphne"])
def server(request: pytest.FixtureRequest) -> servers.Server:
    chosen: servers.Server = request.getfixturevalue(request.param)
    return chosen


def enter(page: Page, server: servers.Server) -> str:
    """Join the room; the name that the guest was given."""
    page.goto(server.url("/demo/"))
    expect(page.locator("#text")).to_be_enabled()
    expect(page.locator("#state")).to_have_text("Connected")
    return page.locator("#me").inner_text()


def say(page: Page, text: str) -> None:
    page.locator("#text").fill(text)
    page.locator("#send").click()


def said(page: Page, text: str) -> Locator:
    return page.locator("#messages .said", has_text=text)


def test_what_one_says_the_other_reads(server: servers.Server, window: OpenWindow) -> None:
    ann, bob = window(), window()
    enter(ann, server)
    name = enter(bob, server)
    say(ann, "Hello from the first window")
    expect(said(bob, "Hello from the first window")).to_have_count(1)
    say(bob, "And back")
    expect(said(ann, "And back")).to_have_count(1)
    expect(ann.locator("#messages li", has_text="And back").locator("b")).to_have_text(name)
    expect(said(ann, "Hello from the first window")).to_have_count(1)


def test_what_looks_like_html_is_shown_as_it_was_typed(server: servers.Server, window: OpenWindow) -> None:
    ann, bob = window(), window()
    enter(ann, server)
    enter(bob, server)
    text = '<img src=x onerror="document.title=1"> & <b>bold</b>'
    say(ann, text)
    expect(said(bob, text)).to_have_count(1)
    expect(bob.locator("#messages img")).to_have_count(0)


def test_each_sees_who_is_here_and_who_has_left(server: servers.Server, window: OpenWindow) -> None:
    ann = window()
    enter(ann, server)
    expect(ann.locator("#count")).to_have_text("1")
    bob = window()
    name = enter(bob, server)
    expect(ann.locator("#count")).to_have_text("2")
    expect(ann.locator("#members")).to_contain_text(name)
    expect(bob.locator("#members li")).to_have_count(2)
    bob.close()
    expect(ann.locator("#count")).to_have_text("1")
    expect(ann.locator("#members")).not_to_contain_text(name)


def test_who_reloads_the_page_is_still_the_same(server: servers.Server, window: OpenWindow) -> None:
    ann, bob = window(), window()
    enter(ann, server)
    name = enter(bob, server)
    bob.reload()
    expect(bob.locator("#text")).to_be_enabled()
    expect(bob.locator("#me")).to_have_text(name)
    expect(ann.locator("#count")).to_have_text("2")
    expect(bob.locator("#members li")).to_have_count(2)


def test_the_others_see_who_is_typing(server: servers.Server, window: OpenWindow) -> None:
    ann, bob = window(), window()
    enter(ann, server)
    name = enter(bob, server)
    bob.locator("#text").press_sequentially("I am just")
    expect(ann.locator("#typing")).to_have_text(f"{name} is typing…")
    expect(bob.locator("#typing")).to_have_text("")


def test_one_who_comes_later_reads_what_was_said(server: servers.Server, window: OpenWindow) -> None:
    ann = window()
    enter(ann, server)
    say(ann, "Before you came")
    expect(said(ann, "Before you came")).to_have_count(1)
    bob = window()
    enter(bob, server)
    expect(said(bob, "Before you came")).to_have_count(1)
    bob.reload()
    expect(said(bob, "Before you came")).to_have_count(1)


def test_who_was_away_gets_what_was_said_meanwhile(server: servers.Server, window: OpenWindow) -> None:
    ann, bob = window(), window()
    enter(ann, server)
    enter(bob, server)
    bob.get_by_role("button", name="Disconnect").click()
    expect(bob.locator("#state")).to_have_text("Disconnected")
    expect(bob.locator("#text")).to_be_disabled()
    expect(ann.locator("#count")).to_have_text("1")
    for text in ("Are you there?", "I see that you are not."):
        say(ann, text)
        expect(said(ann, text)).to_have_count(1)
    bob.get_by_role("button", name="Connect").click()
    expect(said(bob, "I see that you are not.")).to_have_count(1)
    expect(said(bob, "Are you there?")).to_have_count(1)
    assert bob.locator("#messages .said").all_inner_texts()[-2:] == ["Are you there?", "I see that you are not."]


def test_an_empty_room_says_so(start: Callable[..., servers.Server], fleet: servers.Fleet, window: OpenWindow) -> None:
    server = start("uvicorn")
    ann = window()
    enter(ann, server)
    expect(ann.get_by_text("Nobody has said anything yet.")).to_be_visible()
    say(ann, "Hello")
    expect(ann.get_by_text("Nobody has said anything yet.")).not_to_be_visible()


# -- what goes wrong ---------------------------------------------------------------------------------------------------


@pytest.fixture
def visitors(chromium: Browser) -> Iterator[list[Page]]:
    """Two windows in which something goes wrong, as their consoles may say."""
    contexts = [chromium.new_context() for _ in range(2)]
    yield [context.new_page() for context in contexts]
    for context in contexts:
        context.close()


def test_what_is_refused_is_told_and_not_lost(debug: servers.Server, visitors: list[Page]) -> None:
    ann, _ = visitors
    enter(ann, debug)
    ann.route("**/messages/", lambda route: route.fulfill(status=400, json={"error": "Not so loud."}))
    say(ann, "Is anybody there?")
    expect(ann.get_by_role("alert")).to_have_text("Not so loud.")
    expect(ann.locator("#text")).to_have_value("Is anybody there?")


SPEAK = """
from django.utils import timezone
from fanfare import publish
guest = {"guest": "jade-lute", "name": "Jade Lute"}
publish("presence-demo", "message", {**guest, "text": "Said while no server ran", "at": timezone.now()})
"""


def test_a_restart_of_the_server_loses_no_message(
    start: Callable[..., servers.Server],
    fleet: servers.Fleet,
    visitors: list[Page],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deployment = fleet.deployment()
    server = start("uvicorn", deployment)
    for page in visitors:
        enter(page, server)
    say(visitors[0], "Before the restart")
    for page in visitors:
        expect(said(page, "Before the restart")).to_have_count(1)
    server.stop()
    for page in visitors:
        expect(page.locator("#text")).to_be_disabled()
    deployment.shell(SPEAK)
    monkeypatch.setattr(servers, "free_port", lambda: server.port)
    start("uvicorn", deployment)
    for page in visitors:
        expect(page.locator("#text")).to_be_enabled(timeout=AFTER_A_RESTART_MS)
    say(visitors[0], "After the restart")
    for page in visitors:
        expect(said(page, "After the restart")).to_have_count(1)
        texts = page.locator("#messages .said").all_inner_texts()
        assert texts == ["Before the restart", "Said while no server ran", "After the restart"]
