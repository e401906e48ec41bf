from __future__ import annotations

import sys

import pytest
from channels.generic.websocket import AsyncJsonWebsocketConsumer
from channels.routing import URLRouter
from channels.testing import WebsocketCommunicator
from django.core.exceptions import ImproperlyConfigured
from django.urls import path, re_path

from fanfare.server import consumers


class Echo(AsyncJsonWebsocketConsumer):
    """Says who is there and what was in the path."""

    async def connect(self):
        await self.accept()
        await self.send_json({"user": str(self.scope["user"]), **self.scope["url_route"]["kwargs"]})


class Protocol(AsyncJsonWebsocketConsumer):
    """Stands for the Pusher protocol, which says what it thinks of a path itself."""

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


async def first_words(address, *, patterns=None, headers=(), **scope):
    """What the server says to a WebSocket on this path; None if it is not let in."""
    routed = consumers.Consumers(patterns or [*PATTERNS]).before(Protocol.as_asgi())
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
async def test_what_no_pattern_matches_is_the_protocols_to_refuse(address):
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


async def test_the_session_of_the_page_says_who_it_is(client, django_user_model):
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


def test_without_patterns_nothing_stands_in_the_way():
    async def protocol(scope, receive, send): ...

    assert consumers.Consumers([]).before(protocol) is protocol


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


def test_what_is_no_pattern_stops_the_start_with_a_sentence(app):
    app("websocket_urlpatterns = ['games/']")
    with pytest.raises(ImproperlyConfigured) as caught:
        consumers.discover()
    assert str(caught.value).startswith("games.routing.websocket_urlpatterns has 'games/'; an entry looks like path(")


def test_a_mistake_in_a_routing_module_is_shown_as_it_is(app):
    app("1 / 0")
    with pytest.raises(ZeroDivisionError):
        consumers.discover()
