"""The console's pages about events: the live tail, traces, the event creator, the auth doctor, time travel.

Four workers serve: the one that serves the page is rarely the one that has the socket.
"""

from __future__ import annotations

import re
from uuid import uuid4

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import OpenWindow
from tests.harness import calls, deployments, servers, waiting

PUSHER = "/static/fanfare/vendor/pusher-js/pusher.min.js"

CONNECT = """
([key, port]) => new Promise((resolve) => {
  window.pusher = new Pusher(key, {
    cluster: "", wsHost: "127.0.0.1", wsPort: port, forceTLS: false, enabledTransports: ["ws"],
    channelAuthorization: { customHandler: (_, done) => done(null, { auth: `${key}:${"0".repeat(64)}` }) },
  });
  pusher.connection.bind("connected", () => resolve(pusher.connection.socket_id));
})
"""


@pytest.fixture
def admin(production: servers.Server, window: OpenWindow) -> Page:
    """A window that is logged in."""
    page = window()
    page.set_viewport_size({"width": 1280, "height": 800})
    page.goto(production.url("/admin/"))
    page.get_by_label("Username").fill(deployments.ADMIN_NAME)
    page.get_by_label("Password").fill(deployments.ADMIN_PASSWORD)
    page.get_by_role("button", name="Log in").click()
    expect(page.locator("#user-tools")).to_contain_text(re.compile(deployments.ADMIN_NAME, re.IGNORECASE))
    return page


def visit(admin: Page, server: servers.Server, page: str) -> None:
    admin.goto(server.url(f"/admin/fanfare/console/{page}"))
    expect(admin.locator("#console-state")).to_have_attribute("data-state", "live")


def client(window: OpenWindow, server: servers.Server) -> tuple[Page, str]:
    """A page with pusher-js that is connected, and its socket id."""
    page = window()
    page.goto(server.url("/static/fanfare/site.css"))  # a document of this origin without a script
    page.add_script_tag(url=server.url(PUSHER))
    return page, page.evaluate(CONNECT, [server.application.key, server.port])


def subscribe(page: Page, channel: str) -> None:
    page.evaluate(
        "(channel) => new Promise((done) => pusher.subscribe(channel).bind('pusher:subscription_succeeded', done))",
        channel,
    )


def test_event_is_followed_from_the_tail_to_its_socket(
    production: servers.Server, admin: Page, window: OpenWindow
) -> None:
    channel = f"console-{uuid4().hex[:8]}"
    visit(admin, production, f"tail/?channel={channel}&app={production.application.id}")
    page, socket = client(window, production)
    subscribe(page, channel)
    row = admin.locator("#items > li", has_text=channel)
    expect(row.filter(has_text="subscribed").first).to_be_visible()

    assert calls.publish(production, channel, "created", '{"id":"<b>7</b>"}').status == 200
    event = admin.locator('#items > li[data-type="event"]', has_text="created")
    expect(event).to_have_count(1)
    event.locator("summary").click()
    expect(event.locator("pre")).to_contain_text('"<b>7</b>"')  # a text, and no markup

    admin.get_by_role("button", name="Pause").click()
    calls.publish(production, channel, "second", "{}")
    expect(admin.locator("#count")).to_contain_text("wait")
    expect(admin.locator("#items > li", has_text="second")).to_have_count(0)
    admin.get_by_role("button", name="Resume").click()
    expect(admin.locator("#items > li", has_text="second")).to_have_count(1)

    event.get_by_role("link", name="Trace").click()
    expect(admin.locator("#way")).to_contain_text("Written to 1 socket")
    admin.locator("#way summary").first.click()
    expect(admin.locator("#way")).to_contain_text(socket)


def test_filter_that_is_no_pattern_is_answered_with_a_sentence(production: servers.Server, admin: Page) -> None:
    visit(admin, production, "tail/")
    admin.get_by_label("Channel").fill("orders (new)")
    expect(admin.locator("#filter-problem")).to_contain_text("' ' cannot be in the name of a channel")
    admin.get_by_label("Channel").fill("orders-*")
    expect(admin.locator("#filter-problem")).to_be_hidden()
    admin.get_by_label("Socket").fill("abc")
    expect(admin.locator("#filter-problem")).to_contain_text("1234.5678")


def test_refused_signature_is_explained_by_the_doctor(
    production: servers.Server, admin: Page, window: OpenWindow
) -> None:
    channel = f"private-{uuid4().hex[:8]}"
    visit(admin, production, f"tail/?types=refusals&channel={channel}")
    page, socket = client(window, production)
    page.evaluate("(channel) => { pusher.subscribe(channel) }", channel)
    refusal = admin.locator("#items > li", has_text="Invalid signature")
    expect(refusal).to_have_count(1)
    refusal.locator("summary").click()
    refusal.get_by_role("link", name="Examine the signature").click()
    expect(admin.locator("#diagnosis")).to_contain_text("The server refuses it.")
    expect(admin.locator("#diagnosis pre")).to_have_text(f"{socket}:{channel}")
    expect(admin.locator("#diagnosis")).to_contain_text("The key is this application's.")
    assert production.application.secret not in admin.content()


def test_created_event_reaches_a_client_and_says_so(
    production: servers.Server, admin: Page, window: OpenWindow
) -> None:
    channel = f"console-{uuid4().hex[:8]}"
    page, socket = client(window, production)
    subscribe(page, channel)
    page.evaluate(
        "(channel) => { window.got = new Promise((done) => pusher.channel(channel).bind('created', done)) }", channel
    )
    visit(admin, production, "publish/")
    admin.get_by_label("Application").select_option(production.application.id)
    admin.get_by_label("Channel").fill(channel)
    admin.get_by_role("button", name="Publish").click()
    expect(admin.locator("#result")).to_contain_text("Written to 1 socket")
    expect(admin.locator("#result")).to_contain_text(socket)
    assert page.evaluate("() => window.got") == {"id": 1}


def test_history_of_a_channel_is_looked_at_and_replayed(production: servers.Server, admin: Page) -> None:
    kept = production.deployment.create_application("Time travel", "--history", "kept-*=100,3600")
    channel = f"kept-{uuid4().hex[:8]}"
    with calls.Caller(production, kept) as caller:
        for number in range(5):
            assert caller.publish(channel, "moved", f'{{"x":{number}}}').status == 200
    visit(admin, production, f"history/?app={kept.id}&channel={channel}")
    expect(admin.locator("#state")).to_contain_text('"x": 4')
    admin.get_by_role("button", name="Back").click()
    expect(admin.locator("#state")).to_contain_text('"x": 3')
    admin.get_by_label("Point in time").fill("0")
    expect(admin.locator("#state")).to_contain_text('"x": 0')
    expect(admin.locator("#items > li")).to_have_count(1)
    admin.get_by_label("Speed").select_option("20")
    admin.get_by_role("button", name="Replay from here").click()
    expect(admin.locator("#state")).to_contain_text('"x": 4')
    expect(admin.get_by_role("button", name="Replay from here")).to_be_visible()


def test_members_at_an_event_are_known_once_a_worker_records_them(production: servers.Server, admin: Page) -> None:
    recorded = production.deployment.create_application("Members", "--history", "presence-*=100,3600")
    production.deployment.shell(
        f"[rule] = Application.objects.get(app_id='{recorded.id}').rules.all()\nrule.record_members = True\nrule.save()"
    )
    channel = f"presence-{uuid4().hex[:8]}"

    def shown() -> str:
        """The members at a new event, after ann joined and bob left."""
        with calls.Caller(production, recorded) as caller:
            for user, leaves in (("ann", ""), ("bob", ""), ("bob", "/leave")):
                assert caller.signed("POST", f"channels/{channel}/members/{user}{leaves}", {}).status == 200
            caller.publish(channel, "moved", "{}")
        visit(admin, production, f"history/?app={recorded.id}&channel={channel}")
        expect(admin.locator("#members")).not_to_be_empty()
        return admin.locator("#members").inner_text()

    waiting.until(lambda: shown() == "Members at that time: 1 (ann)", 30, "the members are recorded")


def test_pages_fit_a_phone_and_a_desktop(production: servers.Server, admin: Page) -> None:
    for name in ("tail", "trace", "history", "publish", "doctor"):
        visit(admin, production, f"{name}/")
        for width in (390, 1280):
            admin.set_viewport_size({"width": width, "height": 800})
            assert admin.evaluate("() => document.documentElement.scrollWidth") <= width, name
