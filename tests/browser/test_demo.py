"""The demo's room in a real browser: two windows side by side, with pusher-js as it is vendored."""

from __future__ import annotations

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.browser.conftest import OpenWindow
from tests.harness import servers


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


def test_a_second_tab_of_the_same_guest_is_nobody_new(server: servers.Server, window: OpenWindow) -> None:
    ann, bob = window(), window()
    enter(ann, server)
    enter(bob, server)
    bob.reload()
    expect(bob.locator("#text")).to_be_enabled()
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
