from __future__ import annotations

import pytest
from channels.generic.websocket import WebsocketConsumer
from django.core import checks as django_checks
from django.core import management
from django.http import HttpResponse
from django.urls import include, path, re_path

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


class Fanfare:
    """fanfare.urls as it is with DEBUG."""

    app_name = "fanfare"
    urlpatterns = (path("pusher/auth", view, name="auth"), path("", view, name="landing"))


@pytest.mark.parametrize(
    ("patterns", "is_hidden"),
    [
        ([path("", include(Fanfare)), path("", view, name="home")], True),
        ([path("", view, name="home"), path("", include(Fanfare))], False),
        ([path("", include(Fanfare)), path("about/", view)], False),
        ([path("rt/", include(Fanfare)), path("", view)], False),
        ([path("about/", view)], False),
    ],
)
def test_a_front_page_behind_the_landing_page_is_named(urls, patterns, is_hidden):
    urls(*patterns)
    assert [message.id for message in checks.hidden_front_page(None)] == (["fanfare.W011"] if is_hidden else [])


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
