"""The demo room in two Chromium windows, with the included pusher-js."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from tests.browser.conftest import OpenWindow
from tests.harness import servers, waiting

AFTER_A_RESTART_MS = 60_000  # pusher-js waits 15 s after a refused attempt, and the machine may be busy


@pytest.fixture(params=["debug", "production", "daphne"])
def server(request: pytest.FixtureRequest) -> servers.Server:
    chosen: servers.Server = request.getfixturevalue(request.param)
    return chosen


def enter(page: Page, server: servers.Server) -> str:
    """Join the room; returns the guest's name."""
    page.goto(server.url("/demo/"))
    expect(page.locator("#text")).to_be_enabled()
    expect(page.locator("#state")).to_have_text("Connected")
    return page.locator("#me").inner_text()


def say(page: Page, text: str) -> None:
    page.locator("#text").fill(text)
    page.locator("#send").click()


def said(page: Page, text: str) -> Locator:
    return page.locator("#messages .said", has_text=text)


def test_messages_reach_the_other_window_and_the_sender_once(server: servers.Server, window: OpenWindow) -> None:
    ann, bob = window(), window()
    enter(ann, server)
    name = enter(bob, server)
    say(ann, "Hello from the first window")
    expect(said(bob, "Hello from the first window")).to_have_count(1)
    say(bob, "And back")
    expect(said(ann, "And back")).to_have_count(1)
    expect(ann.locator("#messages li", has_text="And back").locator("b")).to_have_text(name)
    expect(said(ann, "Hello from the first window")).to_have_count(1)


def test_html_in_a_message_is_shown_as_text(server: servers.Server, window: OpenWindow) -> None:
    ann, bob = window(), window()
    enter(ann, server)
    enter(bob, server)
    text = '<img src=x onerror="document.title=1"> & <b>bold</b>'
    say(ann, text)
    expect(said(bob, text)).to_have_count(1)
    expect(bob.locator("#messages img")).to_have_count(0)


def test_member_list_follows_joins_and_leaves(server: servers.Server, window: OpenWindow) -> None:
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


def test_reload_keeps_the_guest(server: servers.Server, window: OpenWindow) -> None:
    ann, bob = window(), window()
    enter(ann, server)
    name = enter(bob, server)
    bob.reload()
    expect(bob.locator("#text")).to_be_enabled()
    expect(bob.locator("#me")).to_have_text(name)
    expect(ann.locator("#count")).to_have_text("2")
    expect(bob.locator("#members li")).to_have_count(2)


def test_typing_indicator_names_the_other_guest(server: servers.Server, window: OpenWindow) -> None:
    ann, bob = window(), window()
    enter(ann, server)
    name = enter(bob, server)
    bob.locator("#text").press_sequentially("I am just")
    expect(ann.locator("#typing")).to_have_text(f"{name} is typing…")
    expect(bob.locator("#typing")).to_have_text("")


def test_later_guest_and_reloaded_page_see_earlier_messages(server: servers.Server, window: OpenWindow) -> None:
    ann = window()
    enter(ann, server)
    say(ann, "Before you came")
    expect(said(ann, "Before you came")).to_have_count(1)
    bob = window()
    enter(bob, server)
    expect(said(bob, "Before you came")).to_have_count(1)
    bob.reload()
    expect(said(bob, "Before you came")).to_have_count(1)


def test_messages_during_a_disconnect_are_recovered_in_order(server: servers.Server, window: OpenWindow) -> None:
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


def test_empty_room_has_a_hint(start: Callable[..., servers.Server], fleet: servers.Fleet, window: OpenWindow) -> None:
    server = start("uvicorn")
    ann = window()
    enter(ann, server)
    expect(ann.get_by_text("No messages yet.")).to_be_visible()
    say(ann, "Hello")
    expect(ann.get_by_text("No messages yet.")).not_to_be_visible()


# -- failures --------------------------------------------------------------------------------------------------------


@pytest.fixture
def visitors(chromium: Browser) -> Iterator[list[Page]]:
    """Two windows that may have errors in their consoles."""
    contexts = [chromium.new_context() for _ in range(2)]
    yield [context.new_page() for context in contexts]
    for context in contexts:
        context.close()


def test_room_without_a_history_does_not_count_missed_messages(
    start: Callable[..., servers.Server], fleet: servers.Fleet, visitors: list[Page]
) -> None:
    deployment = fleet.deployment()
    deployment.shell("for one in Application.objects.all(): one.rules.all().delete()")
    server = start("uvicorn", deployment)
    ann, _ = visitors
    enter(ann, server)
    say(ann, "Hello")
    expect(said(ann, "Hello")).to_have_count(1)
    ann.get_by_role("button", name="Disconnect").click()
    ann.get_by_role("button", name="Connect").click()
    expect(ann.locator("#missed")).to_have_text("?")
    expect(ann.get_by_role("alert")).to_contain_text("no channel rule")


def test_refused_message_shows_the_reason_and_keeps_the_text(debug: servers.Server, visitors: list[Page]) -> None:
    ann, _ = visitors
    enter(ann, debug)
    ann.route("**/messages/", lambda route: route.fulfill(status=400, json={"error": "Not so loud."}))
    say(ann, "Is this too loud?")
    expect(ann.get_by_role("alert")).to_have_text("Not so loud.")
    expect(ann.locator("#text")).to_have_value("Is this too loud?")


SPEAK = """
from django.utils import timezone
from fanfare import publish
guest = {"guest": "jade-lute", "name": "Jade Lute"}
publish("presence-demo", "message", {**guest, "text": "Published while no server ran", "at": timezone.now()})
"""


def test_restart_of_the_server_loses_no_message(
    start: Callable[..., servers.Server], fleet: servers.Fleet, visitors: list[Page]
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
    start("uvicorn", deployment, port=server.port)
    for page in visitors:
        expect(page.locator("#text")).to_be_enabled(timeout=AFTER_A_RESTART_MS)
    say(visitors[0], "After the restart")
    for page in visitors:
        expect(said(page, "After the restart")).to_have_count(1)
        texts = page.locator("#messages .said").all_inner_texts()
        assert texts == ["Before the restart", "Published while no server ran", "After the restart"]


def test_killed_worker_costs_no_message(
    start: Callable[..., servers.Server], fleet: servers.Fleet, visitors: list[Page]
) -> None:
    server = start("gunicorn", fleet.deployment(FANFARE_DEBUG="1"))
    before = set(server.workers())
    ann, bob = visitors
    for page in visitors:
        enter(page, server)
    say(bob, "Before the worker's death")
    for page in visitors:
        expect(said(page, "Before the worker's death")).to_have_count(1)

    def is_killed() -> bool:
        """409: the worker that answers does not see the others yet."""
        with ann.expect_response("**/kill/") as answer:
            ann.get_by_role("button", name="Kill a worker").click()
        return answer.value.status == 204

    waiting.until(is_killed, 30, "a worker that sees the others")
    for page in visitors:
        expect(said(page, "I was sent while the worker was dead.")).to_have_count(1, timeout=AFTER_A_RESTART_MS)
        expect(page.locator("#text")).to_be_enabled(timeout=AFTER_A_RESTART_MS)
    waiting.until(lambda: not before <= set(server.workers()), 30, "a worker's death")
    with ann.expect_response("**/messages/", timeout=AFTER_A_RESTART_MS):  # counts again after the next connection
        ann.get_by_role("button", name="Disconnect").click()
        ann.get_by_role("button", name="Connect").click()
    expect(said(ann, "I was sent while the worker was dead.")).to_have_count(1)
    for page in visitors:
        expect(page.locator("#missed")).to_have_text("0")
