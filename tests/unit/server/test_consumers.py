from __future__ import annotations

import sys
from typing import ClassVar

import pytest
from channels.auth import AuthMiddlewareStack
from channels.generic.websocket import AsyncJsonWebsocketConsumer, AsyncWebsocketConsumer
from channels.routing import URLRouter
from channels.testing import WebsocketCommunicator
from django.core.exceptions import ImproperlyConfigured
from django.urls import path, re_path
from uvicorn.protocols.utils import ClientDisconnected

from fanfare.server import consumers


class Echo(AsyncJsonWebsocketConsumer):
    """Sends the user and the parameters of the path."""

    async def connect(self):
        await self.accept()
        await self.send_json({"user": str(self.scope["user"]), **self.scope["url_route"]["kwargs"]})


class Protocol(AsyncJsonWebsocketConsumer):
    """Stands for the Pusher protocol, which refuses unknown paths itself."""

    async def connect(self):
        assert "user" not in self.scope, "the protocol has no session, and must not wait for one"
        await self.accept()
        await self.send_json({"protocol": self.scope["path"]})


PATTERNS = [
    path("chat/<slug:room>/", Echo.as_asgi()),
    re_path(r"^game/(?P<board>[a-z]+)$", Echo.as_asgi()),
    path("team/", URLRouter([path("wall/", Echo.as_asgi())])),
    path("app/<str:key>", Echo.as_asgi()),
    path("mine/app/<str:key>", Echo.as_asgi()),
]

pytestmark = pytest.mark.django_db(transaction=True)


KEY = "known"


async def knows(key):
    return key == KEY


async def first_words(address, *, patterns=None, own=None, url_prefix="", headers=(), **scope):
    """What the server says to a WebSocket on this path; None if it is not let in."""
    routed = consumers.WebSockets(
        Protocol.as_asgi(),
        patterns=[*PATTERNS] if patterns is None else patterns,
        own=own,
        knows=knows,
        url_prefix=url_prefix,
    )
    communicator = WebsocketCommunicator(routed, address, headers=list(headers))
    communicator.scope.update(scope)
    accepted, _ = await communicator.connect()
    said = await communicator.receive_json_from() if accepted else None
    await communicator.disconnect()
    return said


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("/chat/lobby/", {"user": "AnonymousUser", "room": "lobby"}),
        ("/game/chess", {"user": "AnonymousUser", "board": "chess"}),
        ("/team/wall/", {"user": "AnonymousUser"}),
    ],
)
async def test_a_pattern_that_matches_gets_the_socket_with_its_user_and_its_parameters(address, said):
    assert await first_words(address) == said


@pytest.mark.parametrize("address", ["/chat/lobby", "/game/Chess", "/team/", "/team/nothing/", "/", "/wp-login.php"])
async def test_a_path_that_no_pattern_matches_goes_to_the_protocol(address):
    assert await first_words(address) == {"protocol": address}


async def test_no_pattern_takes_the_protocols_own_path():
    everything = [re_path(r"^", Echo.as_asgi())]
    assert await first_words("/app/key", patterns=everything) == {"protocol": "/app/key"}
    assert await first_words("/elsewhere", patterns=everything) == {"user": "AnonymousUser"}


async def test_a_pattern_wins_over_a_prefix_of_the_protocol():
    assert await first_words("/mine/app/key") == {"user": "AnonymousUser", "key": "key"}
    assert await first_words("/other/app/key") == {"protocol": "/other/app/key"}


async def test_below_a_root_path_patterns_match_what_follows_it():
    said = await first_words("/fanfare/chat/lobby/", root_path="/fanfare")
    assert said == {"user": "AnonymousUser", "room": "lobby"}


async def test_the_session_of_the_page_authenticates_the_user(client, django_user_model):
    ann = await django_user_model.objects.acreate_user("ann")
    await client.aforce_login(ann)
    cookie = f"sessionid={client.cookies['sessionid'].value}".encode()
    assert await first_words("/chat/lobby/", headers=[(b"cookie", cookie)]) == {"user": "ann", "room": "lobby"}


@pytest.mark.parametrize(
    ("origin", "is_let_in"),
    [
        (None, True),
        ("https://shop.example.com", True),
        ("http://shop.example.com:8000", True),
        ("https://blog.trusted.example.org", True),
        ("http://blog.trusted.example.org", False),
        ("https://evil.example.net", False),
        ("https://shop.example.com.evil.net", False),
        ("null", False),
        ("file://", False),
    ],
)
async def test_only_pages_of_our_hosts_may_use_the_visitors_cookies(settings, origin, is_let_in):
    settings.ALLOWED_HOSTS = [".example.com"]
    settings.CSRF_TRUSTED_ORIGINS = ["https://*.trusted.example.org"]
    headers = [] if origin is None else [(b"origin", origin.encode())]
    assert (await first_words("/chat/lobby/", headers=headers) is not None) == is_let_in


# -- a routing that the project gives to fanfare.asgi.application ----------------------------------------------------

OWN = AuthMiddlewareStack(URLRouter([path("ours/<slug:room>/", Echo.as_asgi()), path("app/<str:key>", Echo.as_asgi())]))


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("/ours/lobby/", {"user": "AnonymousUser", "room": "lobby"}),
        ("/chat/lobby/", {"user": "AnonymousUser", "room": "lobby"}),  # discovered
        ("/nothing/", {"protocol": "/nothing/"}),
        ("/app/other", {"protocol": "/app/other"}),
        ("/prefix/app/known", {"protocol": "/prefix/app/known"}),
        ("/prefix/app/other", {"protocol": "/prefix/app/other"}),
    ],
)
async def test_the_projects_own_routing_gets_what_is_not_of_the_protocol(address, said):
    assert await first_words(address, own=OWN) == said


async def test_with_a_url_prefix_the_projects_own_routing_may_have_a_path_like_the_protocols():
    options = {"own": OWN, "url_prefix": "/realtime"}
    assert await first_words("/app/other", **options) == {"user": "AnonymousUser", "key": "other"}
    assert await first_words("/app/known", **options) == {"protocol": "/app/known"}
    assert await first_words("/realtime/app/other", **options) == {"protocol": "/realtime/app/other"}


async def test_an_error_of_the_projects_own_routing_is_raised_as_it_is():
    async def broken(scope, receive, send):
        raise ValueError("the till is empty")

    with pytest.raises(ValueError, match="the till is empty"):
        await first_words("/ours/", own=broken, patterns=[])


# -- a client that is gone -------------------------------------------------------------------------------------------


class Leaving(AsyncWebsocketConsumer):
    log: ClassVar[list[str]] = []

    async def connect(self):
        await self.accept()

    async def receive(self, text_data=None, bytes_data=None):
        for number in range(3):
            await self.send(str(number))

    async def disconnect(self, code):
        self.log.append(f"disconnect {code}")


@pytest.mark.parametrize("way", ["discovered", "own"])
async def test_a_client_that_vanishes_during_a_send_still_causes_a_disconnect(way):
    Leaving.log.clear()
    patterns = [path("leaving/", Leaving.as_asgi())]
    routed = consumers.WebSockets(
        Protocol.as_asgi(),
        patterns=patterns if way == "discovered" else [],
        own=URLRouter(patterns) if way == "own" else None,
        knows=knows,
    )
    messages = iter(
        [
            {"type": "websocket.connect"},
            {"type": "websocket.receive", "text": "go"},
            {"type": "websocket.disconnect", "code": 1006},
        ]
    )

    async def receive():
        return next(messages)

    async def send(message):
        if message["type"] == "websocket.send":
            raise ClientDisconnected

    scope = {"type": "websocket", "path": "/leaving/", "root_path": "", "headers": [], "query_string": b""}
    await routed(scope, receive, send)
    assert Leaving.log == ["disconnect 1006"]


# -- how they are found ----------------------------------------------------------------------------------------------


@pytest.fixture
def app(settings, tmp_path, monkeypatch):
    """Makes an installed app `games` with this routing module."""

    def make(routing):
        package = tmp_path / "games"
        package.mkdir()
        (package / "__init__.py").write_text("")
        if routing is not None:
            (package / "routing.py").write_text(routing)
        monkeypatch.syspath_prepend(tmp_path)
        for name in ("games", "games.routing"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        settings.INSTALLED_APPS = [*settings.INSTALLED_APPS, "games"]

    return make


ROUTING = """
from channels.generic.websocket import WebsocketConsumer
from django.urls import path

websocket_urlpatterns = [path("games/", WebsocketConsumer.as_asgi())]
"""


def test_the_routing_module_of_an_app_is_found(app):
    before = consumers.discover()
    app(ROUTING)
    assert [str(found.pattern) for found in consumers.discover()[len(before) :]] == ["games/"]


@pytest.mark.parametrize("routing", [None, "", "websocket_urlpatterns = []"])
def test_an_app_needs_no_routing(app, routing):
    before = consumers.discover()
    app(routing)
    assert consumers.discover() == before


def test_an_entry_that_is_no_pattern_stops_the_start_with_a_sentence(app):
    app("websocket_urlpatterns = ['games/']")
    with pytest.raises(ImproperlyConfigured) as caught:
        consumers.discover()
    assert str(caught.value).startswith("games.routing.websocket_urlpatterns has 'games/'; an entry looks like path(")


def test_a_mistake_in_a_routing_module_is_shown_as_it_is(app):
    app("1 / 0")
    with pytest.raises(ZeroDivisionError):
        consumers.discover()
