"""The landing page, the project's own pages and its error pages."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import pytest
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.test import Client
from django.urls import clear_url_caches, include, path

from fanfare import errors, testing
from fanfare import urls as fanfare_urls
from fanfare.applications import models, registry
from fanfare.engine import current
from fanfare.integration import rules, target
from myproject import urls
from tests.harness import snippets
from tests.unit.applications import fakes


@pytest.fixture(autouse=True)
def separate() -> Iterator[None]:
    target.forget()
    with current.replaced(fakes.Log()):  # type: ignore[arg-type]
        yield
    target.forget()


@pytest.fixture
def urls_again() -> Iterator[None]:
    """Reloads the URLs after the settings of the test are gone, so it comes before `settings`."""
    yield
    _reload_urls()


@pytest.fixture
def debug(urls_again: None, settings: Any) -> None:
    """DEBUG, and the URLs as they are with it."""
    settings.DEBUG = True
    _reload_urls()


def _reload_urls() -> None:
    importlib.reload(fanfare_urls)
    importlib.reload(urls)
    clear_url_caches()


@pytest.fixture
def application(db: None) -> models.Application:
    return models.Application.objects.create(name="shop", app_id="7", key="the-key", secret="the-secret")


@pytest.mark.parametrize("page", ["/", "/docs/start/"])
def test_with_debug_the_snippets_can_be_pasted(
    client: Client, debug: None, application: models.Application, page: str
) -> None:
    text = client.get(page, headers={"Host": "localhost:8123"}).content.decode()
    for value in ("the-key", '"localhost"', "8123", "forceTLS: false"):
        assert value in text.replace("&quot;", '"')
    assert "YOUR_" not in text


def test_rules_of_the_snippet_admit_the_customer_and_the_team(
    client: Client, db: None, django_user_model: Any, rf: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, "registered", rules.RuleSet())
    code = snippets.of_landing(client.get("/docs/start/").content.decode(), "Rules")
    exec(compile(code, "channels.py", "exec", dont_inherit=True), {"__name__": "guide"})
    ann, bob = (django_user_model.objects.create(username=name) for name in ("ann", "bob"))
    ann.groups.create(name="kitchen")
    request = rf.post("/pusher/auth")
    for channel in (f"private-orders-{ann.pk}", "presence-team-kitchen"):
        request.user = ann
        rules.authorize(request, channel, registry.Limits())
        request.user = bob
        with pytest.raises(errors.AccessRefused):
            rules.authorize(request, channel, registry.Limits())


DEVELOPER = {"REMOTE_ADDR": "127.0.0.1", "HTTP_HOST": "localhost:8000"}


@pytest.mark.parametrize(
    "stranger",
    [
        {"REMOTE_ADDR": "192.0.2.1"},
        {"HTTP_HOST": "dev.example.com"},
        {"HTTP_X_FORWARDED_FOR": "127.0.0.1"},
        {"HTTP_FORWARDED": "for=127.0.0.1"},
        {"HTTP_X_REAL_IP": "127.0.0.1"},
        {"HTTP_VIA": "1.1 cache"},
    ],
)
def test_only_a_developer_sees_the_secret_and_publishes(
    client: Client, settings: Any, debug: None, application: models.Application, stranger: dict[str, str]
) -> None:
    settings.ALLOWED_HOSTS = ["*"]
    form = {"channel": "orders", "event": "created", "data": "{}"}
    assert "the-secret" in client.get("/", **DEVELOPER).content.decode()
    others = {**DEVELOPER, **stranger}
    assert "the-secret" not in client.get("/", **others).content.decode()
    refused = client.post("/", form, **others)
    assert refused.status_code == 403
    assert "127.0.0.1" in refused.json()["error"]
    assert Client(enforce_csrf_checks=True).post("/", form, **DEVELOPER).status_code == 403
    settings.DEBUG = False
    assert client.post("/", form, **DEVELOPER).status_code == 403


def test_staff_sees_the_secret_from_another_machine(
    client: Client, debug: None, application: models.Application, django_user_model: Any
) -> None:
    client.force_login(django_user_model.objects.create(username="staff", is_staff=True))
    assert "the-secret" in client.get("/", REMOTE_ADDR="192.0.2.1").content.decode()


def test_form_of_the_landing_page_publishes_or_says_why_not(
    client: Client, debug: None, application: models.Application
) -> None:
    form = {"channel": "orders", "event": "created", "data": '{"id": 42}'}
    with testing.captured_events() as events:
        assert client.post("/", form, **DEVELOPER).status_code == 204
        refused = client.post("/", {**form, "channel": "new orders"}, **DEVELOPER)
    assert [(event.channel, event.name, event.data) for event in events] == [("orders", "created", {"id": 42})]
    assert refused.status_code == 400
    assert "new orders" in refused.json()["error"]


@pytest.mark.parametrize("page", ["/", "/docs/start/"])
def test_without_debug_there_are_no_credentials_and_no_queries(
    client: Client, django_assert_num_queries: Any, application: models.Application, page: str
) -> None:
    with django_assert_num_queries(0):
        text = client.get(page).content.decode()
    assert "the-key" not in text
    assert "the-secret" not in text


def test_the_landing_page_leads_on(client: Client) -> None:
    text = client.get("/").content.decode()
    for page in ("/demo/", "/docs/", "/admin/"):
        assert f'href="{page}"' in text


@pytest.mark.django_db
def test_without_an_application_the_page_says_how_to_make_one(client: Client, debug: None) -> None:
    response = client.get("/")
    assert response.status_code == 200
    assert b"createapplication" in response.content


def test_the_landing_page_needs_no_template_of_the_project(
    client: Client, settings: Any, debug: None, application: models.Application
) -> None:
    """A project has no base.html that fits, no demo and no docs."""

    class Below:
        urlpatterns = (path("rt/", include("fanfare.urls")),)

    settings.ROOT_URLCONF = Below
    settings.INSTALLED_APPS = [name for name in settings.INSTALLED_APPS if name not in ("myproject", "demo")]
    text = client.get("/rt/").content.decode()
    assert "the-key" in text
    assert "/demo/" not in text


def test_without_debug_there_is_no_landing_page_and_no_other_page_of_ours() -> None:
    importlib.reload(fanfare_urls)  # another test may have imported it with DEBUG
    names = {pattern.name for pattern in fanfare_urls.urlpatterns}
    assert names == {"auth", "user_auth"}


def test_the_landing_page_connects_where_the_public_url_says(
    client: Client, settings: Any, debug: None, application: models.Application
) -> None:
    settings.FANFARE = {"PUBLIC_URL": "https://sockets.example.com/realtime"}
    text = client.get("/").content.decode()
    for value in ("sockets.example.com", "443", "wsPath", "/realtime", "forceTLS"):
        assert value in text
    settings.FANFARE = {"URL_PREFIX": "/rt/"}
    assert "wsPath" in client.get("/").content.decode()


def denied(request: HttpRequest) -> HttpResponse:
    raise PermissionDenied


def broken(request: HttpRequest) -> HttpResponse:
    raise ZeroDivisionError


class Urls:
    urlpatterns = (*urls.urlpatterns, path("denied/", denied), path("broken/", broken))


@pytest.mark.parametrize(
    ("address", "status", "heading"),
    [
        ("/nothing/", 404, "Page not found."),
        ("/denied/", 403, "You do not have access to this page."),
        ("/broken/", 500, "Something went wrong."),
    ],
)
def test_an_error_page_has_the_projects_look(settings: Any, address: str, status: int, heading: str) -> None:
    settings.ROOT_URLCONF = Urls
    response = Client(raise_request_exception=False).get(address)
    assert response.status_code == status
    assert heading in response.content.decode()
    assert "/static/fanfare/site.css" in response.content.decode()


def test_a_form_without_its_token_gets_a_page_that_says_so() -> None:
    response = Client(enforce_csrf_checks=True).post("/demo/messages/")
    assert response.status_code == 403
    assert b"The form could not be verified." in response.content


def test_an_unknown_host_gets_a_page_that_says_what_to_set(client: Client) -> None:
    response = client.get("/demo/", headers={"Host": "elsewhere.example"})
    assert response.status_code == 400
    assert b"FANFARE_ALLOWED_HOSTS" in response.content


def test_the_pages_that_name_no_icon_get_one(client: Client) -> None:
    response = client.get("/favicon.ico")
    assert (response.status_code, response.headers["Location"]) == (302, "/static/fanfare/logo.svg")
