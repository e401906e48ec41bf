"""The auth endpoints and the client tag in projects with other settings and middleware than ours.

Each of Django's middleware classes, and each of its settings that concerns requests, cookies, CSRF, hosts, paths,
transactions, languages and static files, is here: held by a test, or named by a system check.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.conf.urls.i18n import i18n_patterns
from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import OperationalError, connection, transaction
from django.http import HttpRequest, HttpResponse
from django.template import engines
from django.test import Client
from django.urls import include, path, set_script_prefix
from django.utils import timezone, translation
from django.utils.translation import gettext_lazy
from rest_framework import authentication, exceptions

from fanfare import channel
from fanfare.applications import models
from fanfare.integration import checks, rules, users
from fanfare.protocol import signatures

SOCKET = "1234.5678"
TAG = "{% load fanfare %}{% fanfare_client %}"

# Every middleware class of Django, in an order that its documentation allows.
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.middleware.gzip.GZipMiddleware",
    "django.middleware.http.ConditionalGetMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.locale.LocaleMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.common.BrokenLinkEmailsMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.auth.middleware.LoginRequiredMiddleware",
    "django.contrib.auth.middleware.RemoteUserMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]


def page(request: HttpRequest) -> HttpResponse:
    return HttpResponse(engines["django"].from_string(TAG).render({}, request))


class Urls:
    urlpatterns = (path("page/", page), path("", include("fanfare.urls")))


class InLanguages:
    urlpatterns = tuple(i18n_patterns(path("page/", page), path("", include("fanfare.urls"))))


class Below:
    urlpatterns = (path("shop/page/", page), path("shop/", include("fanfare.urls")))


@pytest.fixture(autouse=True)
def language() -> Iterator[None]:
    """LocaleMiddleware activates a language for the thread, and the test client does not deactivate it."""
    with translation.override("en-us"):
        yield


@pytest.fixture(autouse=True)
def project(settings: Any, registered: rules.RuleSet, application: models.Application) -> None:
    """A project with one rule: signed-in users may join `private-a`."""
    settings.ROOT_URLCONF = Urls
    settings.ALLOWED_HOSTS = [".example.com", "testserver"]
    settings.DEBUG = True  # refusals say their reason

    @channel("private-a")
    def rule(user: Any) -> bool:
        return bool(user.is_authenticated)


@pytest.fixture
def browser() -> Client:
    """A signed-in browser whose requests are checked as a real one's."""
    browser = Client(enforce_csrf_checks=True)
    browser.force_login(User.objects.create_user("ann", pk=42), "django.contrib.auth.backends.ModelBackend")
    return browser


def config(browser: Client, path: str = "/page/", **options: Any) -> dict[str, Any]:
    """What the tag tells the script of a page."""
    response = browser.get(path, **options)
    assert response.status_code == 200, (response.status_code, response.headers)
    found = re.search(r'<script id="fanfare-config" type="application/json">(.+?)</script>', response.text)
    assert found is not None, response.text
    answer: dict[str, Any] = json.loads(found[1])
    return answer


def join(browser: Client, found: dict[str, Any], name: str = "private-a", **options: Any) -> HttpResponse:
    """What the script of the page sends when it subscribes."""
    token = found["csrfToken"]
    if found["csrfCookie"] and found["csrfCookie"] in browser.cookies:
        token = browser.cookies[found["csrfCookie"]].value
    headers = {found["csrfHeader"]: token, "Origin": options.pop("origin", "http://testserver")}
    form = {"socket_id": SOCKET, "channel_name": name}
    return browser.post(found["authEndpoint"], form, headers=headers, **options)  # type: ignore[return-value]


def assert_admitted(response: HttpResponse, application: models.Application) -> None:
    assert response.status_code == 200, (response.status_code, response.content)
    body = json.loads(response.content)
    assert body["auth"] == signatures.subscription_auth(application.key, application.secret, SOCKET, "private-a")


# -- middleware --------------------------------------------------------------------------------------------------------


def test_page_joins_with_every_middleware_of_django(
    settings: Any, browser: Client, application: models.Application
) -> None:
    settings.MIDDLEWARE = [one for one in MIDDLEWARE if "RemoteUser" not in one]
    assert_admitted(join(browser, config(browser)), application)


def test_login_required_middleware_lets_the_endpoints_answer_anonymous_visitors(settings: Any) -> None:
    settings.MIDDLEWARE = MIDDLEWARE
    settings.FANFARE = {"CORS_ORIGINS": ["https://shop.example.com"]}
    response = Client().post("/pusher/auth", {"socket_id": SOCKET, "channel_name": "private-a"})
    assert (response.status_code, response.json()["code"]) == (403, "refused")
    response = Client().post("/pusher/user-auth", {"socket_id": SOCKET})
    assert (response.status_code, response.json()["code"]) == (403, "anonymous")
    asked = {"Origin": "https://shop.example.com", "Access-Control-Request-Method": "POST"}
    assert Client().options("/pusher/auth", headers=asked).status_code == 204


def test_remote_user_of_a_server_in_front_is_the_visitor(settings: Any, application: models.Application) -> None:
    settings.MIDDLEWARE = MIDDLEWARE
    settings.AUTHENTICATION_BACKENDS = ["django.contrib.auth.backends.RemoteUserBackend"]
    form = {"socket_id": SOCKET, "channel_name": "private-a"}
    assert_admitted(Client().post("/pusher/auth", form, REMOTE_USER="ann"), application)  # type: ignore[arg-type]


def test_response_is_not_compressed_away_or_cached(settings: Any, browser: Client) -> None:
    settings.MIDDLEWARE = MIDDLEWARE
    response = join(browser, config(browser), HTTP_ACCEPT_ENCODING="gzip")
    assert "no-store" in response["Cache-Control"]
    assert {"Origin", "Cookie"} <= {name.strip() for name in response["Vary"].split(",")}


def test_project_without_csrf_middleware_needs_no_token(
    settings: Any, browser: Client, application: models.Application
) -> None:
    settings.MIDDLEWARE = [one for one in settings.MIDDLEWARE if "Csrf" not in one]
    form = {"socket_id": SOCKET, "channel_name": "private-a"}
    assert_admitted(browser.post("/pusher/auth", form), application)  # type: ignore[arg-type]


def test_project_without_sessions_and_users_has_anonymous_visitors(settings: Any) -> None:
    settings.MIDDLEWARE = ["django.middleware.common.CommonMiddleware"]
    response = Client().post("/pusher/auth", {"socket_id": SOCKET, "channel_name": "private-a"})
    assert response.json()["error"].endswith("returned False for private-a.")


def test_user_of_a_project_without_django_auth_is_anonymous(settings: Any, rf: Any) -> None:
    settings.INSTALLED_APPS = ["fanfare", "django.contrib.contenttypes"]
    visitor = users.visitor(rf.post("/pusher/auth"))
    assert (visitor.is_authenticated, visitor.is_anonymous, visitor.pk, str(visitor)) == (
        False,
        True,
        None,
        "AnonymousUser",
    )
    assert users.user_id("ann") == "ann"  # without a user model any text is an id


# -- CSRF and cookies --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"CSRF_USE_SESSIONS": True},
        {"CSRF_COOKIE_HTTPONLY": True},
        {"CSRF_COOKIE_NAME": "token", "CSRF_HEADER_NAME": "HTTP_X_XSRF_TOKEN"},
        {"CSRF_COOKIE_SAMESITE": "Strict", "SESSION_COOKIE_SAMESITE": "Strict"},
        {"SESSION_COOKIE_SAMESITE": "None", "SESSION_COOKIE_NAME": "sid", "SESSION_SAVE_EVERY_REQUEST": True},
        {"SESSION_ENGINE": "django.contrib.sessions.backends.signed_cookies"},
        {"APPEND_SLASH": False},
        {"USE_I18N": False},
        {"USE_TZ": False},
        {"TIME_ZONE": "Asia/Kathmandu"},
        {"DISALLOWED_USER_AGENTS": [re.compile("^bot")]},
        {"DATA_UPLOAD_MAX_NUMBER_FIELDS": 5, "DATA_UPLOAD_MAX_MEMORY_SIZE": 500},
        {"DEFAULT_CHARSET": "latin-1"},
        {"USE_THOUSAND_SEPARATOR": True, "LANGUAGE_CODE": "de"},
        {"LANGUAGE_CODE": "ar"},
        {"CACHES": {"default": {"BACKEND": "django.core.cache.backends.dummy.DummyCache"}}},
        {"SESSION_ENGINE": "django.contrib.sessions.backends.cached_db"},
        {"MESSAGE_STORAGE": "django.contrib.messages.storage.cookie.CookieStorage"},
        {"CSRF_FAILURE_VIEW": "django.views.defaults.permission_denied"},
        {"AUTHENTICATION_BACKENDS": ["django.contrib.auth.backends.AllowAllUsersModelBackend"]},
        {"FILE_UPLOAD_HANDLERS": ["django.core.files.uploadhandler.TemporaryFileUploadHandler"]},
        {"SIGNING_BACKEND": "django.core.signing.TimestampSigner", "SECRET_KEY_FALLBACKS": ["another"]},
        {"SECURE_HSTS_SECONDS": 60, "SECURE_CROSS_ORIGIN_OPENER_POLICY": None, "SECURE_REFERRER_POLICY": "no-referrer"},
    ],
    ids=str,
)
def test_page_joins_with_the_settings_of_the_project(
    settings: Any, application: models.Application, changes: dict[str, Any]
) -> None:
    for name, value in changes.items():
        setattr(settings, name, value)
    browser = Client(enforce_csrf_checks=True)
    browser.force_login(User.objects.create_user("ann"))
    assert_admitted(join(browser, config(browser)), application)


def test_refusal_for_the_csrf_token_names_the_header_and_the_setting(settings: Any, browser: Client) -> None:
    settings.CSRF_HEADER_NAME = "HTTP_X_XSRF_TOKEN"
    form = {"socket_id": SOCKET, "channel_name": "private-a"}
    response = browser.post("/pusher/auth", form, headers={"Origin": "https://shop.example.com"})
    assert response.json()["code"] == "csrf"
    assert "'X-XSRF-TOKEN': token" in response.json()["error"]
    assert "FANFARE_CORS_ORIGINS" in response.json()["error"]


@pytest.mark.parametrize(
    ("urlconf", "path", "found"),
    [(Urls, "/", 0), (Urls, "/shop/", 1), (Below, "/shop/", 0), (Below, "/shop", 0), (Below, "/sho", 1)],
)
def test_check_names_a_cookie_path_that_leaves_the_endpoints_out(
    settings: Any, urlconf: Any, path: str, found: int
) -> None:
    settings.ROOT_URLCONF = urlconf
    settings.SESSION_COOKIE_PATH = path
    messages = checks.cookie_paths(None)
    assert len(messages) == found
    assert all("SESSION_COOKIE_PATH" in message.msg and "anonymous" in message.msg for message in messages)


# -- hosts, paths and TLS ----------------------------------------------------------------------------------------------


def test_www_is_the_host_of_the_sockets_after_the_redirect(settings: Any, browser: Client) -> None:
    settings.PREPEND_WWW = True
    response = browser.get("/page/", headers={"Host": "example.com"})
    assert (response.status_code, response["Location"]) == (301, "http://www.example.com/page/")
    found = config(browser, headers={"Host": "www.example.com"})
    assert found["options"]["wsHost"] == "www.example.com"


def test_https_is_used_after_the_redirect(settings: Any, browser: Client, application: models.Application) -> None:
    settings.SECURE_SSL_REDIRECT = True
    assert browser.get("/page/").status_code == 301
    found = config(browser, secure=True)
    assert (found["options"]["forceTLS"], found["options"]["wssPort"]) == (True, 443)
    assert_admitted(join(browser, found, secure=True, origin="https://testserver"), application)


def test_forwarded_host_and_scheme_are_used_if_the_project_trusts_them(settings: Any, browser: Client) -> None:
    settings.USE_X_FORWARDED_HOST = True
    settings.SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
    forwarded = {"X-Forwarded-Host": "shop.example.com:8443", "X-Forwarded-Proto": "https"}
    options = config(browser, headers=forwarded)["options"]
    assert (options["wsHost"], options["wsPort"], options["forceTLS"]) == ("shop.example.com", 8443, True)


def test_force_script_name_is_part_of_every_path(
    settings: Any, browser: Client, application: models.Application
) -> None:
    settings.FORCE_SCRIPT_NAME = "/intranet"
    set_script_prefix("/intranet/")  # Django's handlers do this, and its test client does not
    try:
        found = config(browser)
    finally:
        set_script_prefix("/")
    assert found["authEndpoint"] == "/intranet/pusher/auth"
    assert found["options"]["wsPath"] == "/intranet"
    found["authEndpoint"] = "/pusher/auth"  # as the server in front passes it on
    assert_admitted(join(browser, found), application)


def test_endpoints_may_be_below_a_path(settings: Any, browser: Client, application: models.Application) -> None:
    settings.ROOT_URLCONF = Below
    found = config(browser, "/shop/page/")
    assert (found["authEndpoint"], found["userAuthEndpoint"]) == ("/shop/pusher/auth", "/shop/pusher/user-auth")
    assert_admitted(join(browser, found), application)


# -- languages and time zones ------------------------------------------------------------------------------------------


def test_endpoints_may_be_in_i18n_patterns(settings: Any, browser: Client, application: models.Application) -> None:
    settings.MIDDLEWARE = MIDDLEWARE
    settings.ROOT_URLCONF = InLanguages
    settings.LANGUAGES = [("en", "English"), ("de", "Deutsch")]
    found = config(browser, "/de/page/")
    assert found["authEndpoint"] == "/de/pusher/auth"
    assert_admitted(join(browser, found), application)


def test_lazy_translation_in_an_info_is_in_the_language_of_the_visitor(settings: Any, browser: Client) -> None:
    settings.MIDDLEWARE = MIDDLEWARE

    @channel("presence-a")
    def rule(user: Any) -> dict[str, Any]:
        return {"day": gettext_lazy("Monday"), "at": timezone.now()}

    browser.cookies["django_language"] = "de"
    answer = json.loads(join(browser, config(browser), "presence-a").content)
    assert json.loads(answer["channel_data"])["user_info"]["day"] == "Montag"


# -- databases ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def atomic_requests() -> Iterator[None]:
    before = connection.settings_dict["ATOMIC_REQUESTS"]
    connection.settings_dict["ATOMIC_REQUESTS"] = True
    yield
    connection.settings_dict["ATOMIC_REQUESTS"] = before


@pytest.mark.usefixtures("atomic_requests")
@pytest.mark.django_db(transaction=True)
class TestAtomicRequests:
    def test_rule_runs_in_a_transaction(self, browser: Client) -> None:
        found: list[bool] = []

        @channel("private-b")
        def rule(user: Any) -> bool:
            found.append(connection.in_atomic_block)
            return True

        assert join(browser, config(browser), "private-b").status_code == 200
        assert found == [True]

    def test_rule_that_breaks_is_rolled_back(self, browser: Client) -> None:
        @channel("private-b")
        def rule(user: Any) -> bool:
            User.objects.create_user("bob")
            raise ZeroDivisionError

        found = config(browser)
        browser.raise_request_exception = False
        assert join(browser, found, "private-b").status_code == 500
        assert not User.objects.filter(username="bob").exists()

    def test_database_that_is_away_is_answered_with_503(self, browser: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        found = config(browser)

        class Away:
            def __enter__(self) -> None:
                raise OperationalError("the pool is used up")

            def __exit__(self, *_: object) -> None:
                """Never reached."""

        monkeypatch.setattr(transaction, "atomic", lambda using=None: Away())
        response = join(browser, found)
        assert (response.status_code, json.loads(response.content)["code"]) == (503, "database_unavailable")


# -- static files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["StaticFilesStorage", "ManifestStaticFilesStorage"])
def test_scripts_are_served_by_the_storage_of_the_project(
    settings: Any, browser: Client, tmp_path: Path, backend: str
) -> None:
    settings.STATIC_ROOT = tmp_path
    settings.STATIC_URL = "https://cdn.example.com/assets/"
    settings.STORAGES = {
        **settings.STORAGES,
        "staticfiles": {"BACKEND": f"django.contrib.staticfiles.storage.{backend}"},
    }
    settings.DEBUG = False
    call_command("collectstatic", "--noinput", verbosity=0)
    scripts = re.findall(r'<script src="https://cdn.example.com/assets/([^"]+)"', browser.get("/page/").text)
    assert len(scripts) == 3
    for name in scripts:
        assert (tmp_path / name).is_file(), name
    assert all(re.search(r"\.[0-9a-f]{12}\.", name) for name in scripts) is (backend[0] == "M")


# -- users -------------------------------------------------------------------------------------------------------------


class Account:
    """A user of a custom model: a UUID as its key, no username."""

    is_authenticated = True
    is_active = True

    def __init__(self) -> None:
        self.pk = uuid.UUID("8d8c9f3e-2a43-4a35-9b39-7e0a5a2b9c11")

    def __str__(self) -> str:
        return "ann@example.com"


def as_account(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """A middleware that authenticates in its own way."""

    def middleware(request: HttpRequest) -> HttpResponse:
        request.user = Account()  # type: ignore[assignment]
        return get_response(request)

    return middleware


def test_user_with_a_uuid_and_without_a_username_is_a_member_and_signs_in(settings: Any) -> None:
    settings.MIDDLEWARE = [f"{__name__}.as_account"]

    @channel("presence-a")
    def rule(user: Any) -> bool:
        return True

    answer = Client().post("/pusher/auth", {"socket_id": SOCKET, "channel_name": "presence-a"}).json()
    expected = {"name": "ann@example.com"}
    assert json.loads(answer["channel_data"]) == {"user_id": str(Account().pk), "user_info": expected}
    answer = Client().post("/pusher/user-auth", {"socket_id": SOCKET}).json()
    assert json.loads(answer["user_data"]) == {"id": str(Account().pk), "user_info": expected}


# -- Django REST framework ---------------------------------------------------------------------------------------------


class TokenAuthentication(authentication.BaseAuthentication):  # type: ignore[misc]
    def authenticate(self, request: Any) -> tuple[Any, None] | None:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme != "Token":
            return None
        if token != "abc":
            raise exceptions.AuthenticationFailed("No such token")
        return User.objects.get(username="ann"), None


@pytest.mark.parametrize(
    ("authorization", "admitted"), [("Token abc", True), ("Token wrong", False), ("Bearer abc", False), (None, False)]
)
def test_token_of_rest_framework_authenticates(
    settings: Any, application: models.Application, authorization: str | None, admitted: bool
) -> None:
    settings.INSTALLED_APPS = [*settings.INSTALLED_APPS, "rest_framework"]
    settings.REST_FRAMEWORK = {"DEFAULT_AUTHENTICATION_CLASSES": [f"{__name__}.TokenAuthentication"]}
    User.objects.create_user("ann")
    headers = {} if authorization is None else {"Authorization": authorization}
    form = {"socket_id": SOCKET, "channel_name": "private-a"}
    response = Client(enforce_csrf_checks=authorization is not None).post("/pusher/auth", form, headers=headers)
    if admitted:
        assert_admitted(response, application)  # type: ignore[arg-type]
    else:
        assert (response.status_code, response.json()["code"]) == (403, "refused")


# -- django-cors-headers -----------------------------------------------------------------------------------------------

SHOP = "https://shop.example.com"


@pytest.fixture
def cors_headers(settings: Any) -> None:
    settings.INSTALLED_APPS = [*settings.INSTALLED_APPS, "corsheaders"]
    settings.MIDDLEWARE = ["corsheaders.middleware.CorsMiddleware", *settings.MIDDLEWARE]
    settings.FANFARE = {"CORS_ORIGINS": [SHOP]}


def preflight() -> HttpResponse:
    asked = {
        "Origin": SHOP,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "x-csrftoken",
    }
    return Client().options("/pusher/auth", headers=asked)  # type: ignore[return-value]


@pytest.mark.usefixtures("cors_headers")
@pytest.mark.parametrize(
    "changes",
    [
        {"CORS_URLS_REGEX": r"^(?!/pusher/)"},
        {"CORS_ALLOWED_ORIGINS": [SHOP], "CORS_ALLOW_CREDENTIALS": True},
        {"CORS_ALLOW_ALL_ORIGINS": True, "CORS_ALLOW_CREDENTIALS": True},
    ],
    ids=str,
)
def test_cors_headers_that_the_check_accepts_let_the_page_in(
    settings: Any, browser: Client, changes: dict[str, Any]
) -> None:
    for name, value in changes.items():
        setattr(settings, name, value)
    assert checks.cors_headers(None) == []
    response = preflight()
    assert response["Access-Control-Allow-Origin"] == SHOP
    assert response["Access-Control-Allow-Credentials"] == "true"
    form = {"socket_id": SOCKET, "channel_name": "private-a"}
    response = browser.post("/pusher/auth", form, headers={"Origin": SHOP})  # type: ignore[assignment]
    assert response.status_code == 200
    assert response.headers["Access-Control-Allow-Origin"] == SHOP


@pytest.mark.usefixtures("cors_headers")
def test_check_names_what_cors_headers_lacks(settings: Any) -> None:
    assert "Access-Control-Allow-Origin" not in preflight()
    [message] = checks.cors_headers(None)
    assert "CORS_ALLOW_CREDENTIALS = True" in message.msg
    assert f"'{SHOP}' in CORS_ALLOWED_ORIGINS" in message.msg
    assert r'CORS_URLS_REGEX = r"^(?!/pusher/)"' in str(message.hint)
    settings.FANFARE = {}
    assert checks.cors_headers(None) == []
