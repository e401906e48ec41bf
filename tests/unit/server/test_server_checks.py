from __future__ import annotations

import importlib

import pytest
from channels.generic.websocket import WebsocketConsumer
from django.core import checks as django_checks
from django.core import management
from django.http import HttpResponse
from django.urls import Resolver404, clear_url_caches, include, path, re_path, resolve

from fanfare import urls as fanfare_urls
from fanfare.management import runserver
from fanfare.server import checks, consumers


def view(request, **kwargs):
    return HttpResponse()


@pytest.fixture
def urls(settings):
    """Sets the project's URL patterns."""

    def use(*patterns):
        settings.ROOT_URLCONF = type("Urls", (), {"urlpatterns": patterns})

    return use


@pytest.mark.django_db  # Django 6.1 asks the database for its features
def test_the_project_itself_has_no_warning():
    assert [
        message.id for message in django_checks.run_checks() if message.id in {"fanfare.W010", "fanfare.W011"}
    ] == []


@pytest.mark.parametrize(
    ("pattern", "named"),
    [
        (path("apps/<int:pk>/events", view), "apps/<int:pk>/events"),
        (path("apps/<slug:app>/<slug:page>", view), "apps/<slug:app>/<slug:page>"),
        (re_path(r"^users/(?P<pk>\d+)/(?P<action>\w+)$", view), "^users/"),
        (path("sse/<str:stream>", view), "sse/<str:stream>"),
        (path("health/<str:kind>", view), "health/<str:kind>"),
        (path("health/", include([path("ready", view)])), "health/ready"),
    ],
)
def test_a_url_pattern_that_ours_hides_is_named_with_the_remedy(urls, pattern, named):
    urls(pattern)
    (found,) = checks.hidden_urls(None)
    assert found.id == "fanfare.W010"
    assert named in found.msg
    assert "FANFARE_URL_PREFIX" in found.hint


@pytest.mark.parametrize(
    "pattern",
    [
        path("users/", view),
        path("users/<int:pk>/", view),
        path("apps/", view),
        path("apps/<int:pk>/edit", view),
        path("health/", view),
        path("<path:everything>", view),
        re_path(r"^.*$", view),
        path("de/users/7/terminate_connections", view),
    ],
)
def test_a_url_pattern_beside_ours_is_not_named(urls, pattern):
    urls(pattern)
    assert checks.hidden_urls(None) == []


def test_below_a_url_prefix_nothing_of_the_project_is_hidden(urls, settings):
    settings.FANFARE = {"URL_PREFIX": "/realtime/"}
    urls(path("apps/<int:pk>/events", view))
    assert checks.hidden_urls(None) == []


def test_a_websocket_pattern_below_app_is_named(monkeypatch):
    patterns = [path("chat/", WebsocketConsumer.as_asgi()), path("app/<str:name>", WebsocketConsumer.as_asgi())]
    monkeypatch.setattr(consumers, "discover", lambda: patterns)
    (found,) = checks.hidden_websockets(None)
    assert "'app/<str:name>'" in found.msg


@pytest.fixture
def front_pages(urls, settings):
    """With DEBUG: which view answers a path of these patterns, where "ours" stands for the include of fanfare.urls."""
    settings.DEBUG = True
    importlib.reload(fanfare_urls)

    def answer(path_, *patterns):
        urls(*patterns)
        try:
            return resolve(path_).view_name
        except Resolver404:
            return None

    yield answer
    settings.DEBUG = False
    importlib.reload(fanfare_urls)
    clear_url_caches()


OURS = "fanfare.urls"


@pytest.mark.parametrize(
    ("patterns", "view_name"),
    [
        ([path("about/", view)], "fanfare:landing"),
        ([path("", view, name="home")], "home"),
        ([path("", include([path("", view, name="home")]))], "home"),
        ([re_path(r"^((?:[\w\-]+/)*)$", view, name="cms")], "cms"),
    ],
)
@pytest.mark.parametrize("is_first", [True, False])
def test_the_landing_page_gives_way_to_the_projects_front_page_wherever_it_is_included(
    front_pages, patterns, view_name, is_first
):
    ours = path("", include(OURS))
    assert front_pages("/", *([ours, *patterns] if is_first else [*patterns, ours])) == view_name


def test_the_landing_page_at_a_place_of_its_own_is_shown(front_pages):
    catch_all = re_path(r"^((?:[\w\-]+/)*)$", view, name="cms")
    assert front_pages("/rt/", path("rt/", include(OURS)), catch_all) == "fanfare:landing"
    assert front_pages("/", path("rt/", include(OURS)), catch_all) == "cms"


def test_a_project_with_a_front_page_has_the_landing_page_below_it(front_pages):
    assert front_pages("/fanfare/", path("", include(OURS)), path("", view, name="home")) == "fanfare:landing_page"


@pytest.fixture
def commands(monkeypatch):
    found = dict(management.get_commands())
    monkeypatch.setattr(management, "get_commands", lambda: found)
    return found


@pytest.mark.parametrize("owner", sorted(runserver.REPLACED))
def test_runserver_is_ours_wherever_fanfare_stands_in_installed_apps(commands, owner):
    commands["runserver"] = owner
    runserver.take_over()
    assert commands["runserver"] == "fanfare"
    assert checks.other_runserver(None) == []


def test_runserver_of_another_app_stays_and_is_named(commands):
    commands["runserver"] = "somebodys_server"
    runserver.take_over()
    assert commands["runserver"] == "somebodys_server"
    (found,) = checks.other_runserver(None)
    assert "'somebodys_server'" in found.msg


def test_wrong_settings_end_runserver_with_their_sentence(monkeypatch):
    from django.core.exceptions import ImproperlyConfigured

    def fail():
        with runserver.or_end():
            raise ImproperlyConfigured("FANFARE_PORT is 'x'.")

    monkeypatch.setattr("sys.argv", ["manage.py", "migrate"])
    with pytest.raises(ImproperlyConfigured):
        fail()
    monkeypatch.setattr("sys.argv", ["manage.py", "runserver"])
    with pytest.raises(SystemExit, match="FANFARE_PORT is 'x'"):
        fail()
