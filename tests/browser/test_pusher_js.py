"""pusher-js with encryption from npm, in Chromium, with a backend SDK that signs for the page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pusher
import pytest
from playwright.sync_api import Page

from tests.browser.conftest import OpenWindow
from tests.harness import backends, pusherjs, sdk, servers

SCRIPT = pusherjs.CLIENTS / "node_modules/pusher-js/dist/web/pusher-with-encryption.min.js"

CONNECT = """
([key, port, user]) => {
  window.seen = [];
  const note = (where) => (event, data) => seen.push({ where, event, data: data?.members ? data.members : data });
  window.pusher = new Pusher(key, {
    cluster: "", wsHost: "127.0.0.1", wsPort: port, forceTLS: false, enabledTransports: ["ws"],
    channelAuthorization: {
      customHandler: ({ channelName, socketId }, done) =>
        authorize(channelName, socketId, user).then((answer) => done(null, answer), (error) => done(error, null)),
    },
    userAuthentication: {
      customHandler: ({ socketId }, done) => authenticate(socketId, user).then((answer) => done(null, answer)),
    },
  });
  window.join = (channel) => pusher.subscribe(channel).bind_global(note(channel));
  pusher.user.bind_global(note("user"));
  pusher.user.watchlist.bind_global(note("watchlist"));
}
"""


@pytest.fixture(scope="module")
def backend(production: servers.Server) -> Iterator[pusher.Pusher]:
    with pusherjs.Runtime():  # installs the npm packages
        yield sdk.client(production, encryption_master_key_base64=backends.MASTER_KEY)


def connected(page: Page, server: servers.Server, backend: pusher.Pusher, user: dict[str, Any]) -> Page:
    def authorize(channel: str, socket_id: str, user: dict[str, Any]) -> Any:
        member = {"user_id": user["id"], "user_info": {"of": "Chromium"}} if channel.startswith("presence-") else None
        answer = backend.authenticate(channel=channel, socket_id=socket_id, custom_data=member)
        if "shared_secret" in answer:
            answer["shared_secret"] = answer["shared_secret"].decode()  # JSON cannot encode the SDK's bytes
        return answer

    page.goto(server.url("/static/fanfare/site.css"))  # a document of this origin without a script
    page.add_script_tag(path=SCRIPT)
    page.expose_function("authorize", authorize)
    page.expose_function("authenticate", backend.authenticate_user)
    page.evaluate(CONNECT, [server.application.key, server.port, user])
    return page


def sees(page: Page, where: str, event: str) -> Any:
    """The data of the first such event."""
    found = "([where, event]) => seen.find((each) => each.where === where && each.event === event)"
    return page.wait_for_function(found, arg=[where, event]).evaluate("({ data }) => data ?? null")


def join(page: Page, channel: str) -> Any:
    page.evaluate("(channel) => { join(channel); }", channel)
    return sees(page, channel, "pusher:subscription_succeeded")


def unique(prefix: str) -> str:
    return f"{prefix}-{uuid4().hex[:8]}"


def test_events_of_every_kind_of_channel_reach_the_page(
    window: OpenWindow, production: servers.Server, backend: pusher.Pusher
) -> None:
    page = connected(window(), production, backend, {"id": "ann"})
    for kind in ("news", "private-news", "presence-news", "private-encrypted-news", "cache-news"):
        channel = unique(kind)
        join(page, channel)
        backend.trigger(channel, "created", {"title": "日本 🎺"})
        assert sees(page, channel, "created") == {"title": "日本 🎺"}, kind


def test_page_decrypts_an_event_that_a_django_project_encrypted(
    window: OpenWindow, production: servers.Server, backend: pusher.Pusher
) -> None:
    page = connected(window(), production, backend, {"id": "ann"})
    channel = unique("private-encrypted-orders")
    join(page, channel)
    code = f"from fanfare import publish; publish({channel!r}, 'created', {{'title': '日本 🎺'}})"
    production.deployment.manage("shell", "--no-imports", "-c", code, FANFARE_ENCRYPTION_MASTER_KEY=backends.MASTER_KEY)
    assert sees(page, channel, "created") == {"title": "日本 🎺"}


def test_members_see_each_other(window: OpenWindow, production: servers.Server, backend: pusher.Pusher) -> None:
    room = unique("presence-room")
    ann = connected(window(), production, backend, {"id": "ann"})
    assert join(ann, room) == {"ann": {"of": "Chromium"}}
    bob = connected(window(), production, backend, {"id": "bob"})
    assert set(join(bob, room)) == {"ann", "bob"}
    assert sees(ann, room, "pusher:member_added")["id"] == "bob"
    bob.evaluate("(room) => { pusher.channel(room).trigger('client-typing', { on: true }); }", room)
    assert sees(ann, room, "client-typing") == {"on": True}
    bob.evaluate("() => { pusher.disconnect(); }")
    assert sees(ann, room, "pusher:member_removed")["id"] == "bob"


def test_signed_in_user_is_watched_gets_events_and_is_terminated(
    window: OpenWindow, production: servers.Server, backend: pusher.Pusher
) -> None:
    name = unique("bob")
    ann = connected(window(), production, backend, {"id": unique("ann"), "watchlist": [name]})
    bob = connected(window(), production, backend, {"id": name})
    ann.evaluate("() => { pusher.signin(); }")
    assert sees(ann, "watchlist", "offline")["user_ids"] == [name]
    bob.evaluate("() => { pusher.signin(); }")
    assert sees(ann, "watchlist", "online")["user_ids"] == [name]
    bob.wait_for_function("pusher.user.user_data?.id")
    bob.wait_for_function("pusher.user.serverToUserChannel?.subscribed")
    backend.send_to_user(name, "paid", {"id": 7})
    assert sees(bob, "user", "paid") == {"id": 7}
    backend.terminate_user_connections(name)
    bob.wait_for_function("pusher.connection.state === 'disconnected'")
    assert ann.evaluate("pusher.connection.state") == "connected"
