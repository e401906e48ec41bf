from __future__ import annotations

import json
import re
from typing import Any

import pytest
from django.contrib.staticfiles import finders
from django.template import Context, RequestContext, Template, TemplateSyntaxError
from django.test import RequestFactory

from fanfare.applications import models


class Empty:
    urlpatterns = ()


def rendered(arguments: str = "", **values: Any) -> str:
    request = RequestFactory().get("/page/", headers={"Host": "live.example.com"}, secure=True)
    tag = f"{{% load fanfare %}}{{% fanfare_client {arguments} %}}"
    return Template(tag).render(RequestContext(request, values))


def config(html: str) -> dict[str, Any]:
    found = re.search(r'<script id="fanfare-config" type="application/json">(.+?)</script>', html)
    assert found is not None, html
    answer: dict[str, Any] = json.loads(found[1])
    return answer


def scripts(html: str) -> list[str]:
    return re.findall(r'<script src="/static/([^"]+)"', html)


@pytest.fixture(autouse=True)
def allowed(settings: Any, application: models.Application) -> None:
    settings.ALLOWED_HOSTS = ["live.example.com"]


def test_config_has_what_a_client_needs_and_no_secret(application: models.Application) -> None:
    html = rendered()
    found = config(html)
    assert found["key"] == "key-7"
    assert (found["options"]["wsHost"], found["options"]["forceTLS"]) == ("live.example.com", True)
    assert (found["authEndpoint"], found["userAuthEndpoint"]) == ("/pusher/auth", "/pusher/user-auth")
    assert len(found["csrfToken"]) == 64
    assert found["csrfCookie"] == "csrftoken"
    assert application.secret not in html


def test_scripts_are_static_files_in_order_of_dependency() -> None:
    names = scripts(rendered())
    assert names == ["fanfare/vendor/pusher-js/pusher.min.js", "fanfare/resume.js", "fanfare/client.js"]
    for name in names:
        assert finders.find(name), name


def test_encrypted_selects_the_build_that_decrypts() -> None:
    assert scripts(rendered("encrypted=True"))[0] == "fanfare/vendor/pusher-js/pusher-with-encryption.min.js"
    assert finders.find("fanfare/vendor/pusher-js/pusher-with-encryption.min.js")


def test_recovery_can_be_switched_off() -> None:
    """The script stays: it also makes reconnects fast."""
    assert "fanfare/resume.js" in scripts(rendered("resume=False"))


def test_every_script_has_the_nonce() -> None:
    html = rendered("nonce=nonce", nonce='a"b')
    assert html.count('nonce="a&quot;b"') == html.count("<script src=") == 3
    assert "nonce" not in rendered()


def test_params_are_escaped_in_the_config() -> None:
    html = rendered("params=params sign_in=True", params={"guest": "</script><script>alert(1)</script>"})
    assert "alert(1)</script>" not in html
    assert config(html)["params"]["guest"].endswith("</script>")
    assert config(html)["signIn"] is True


def test_csrf_token_in_the_session_is_not_read_from_a_cookie(settings: Any) -> None:
    settings.CSRF_USE_SESSIONS = True
    request = RequestFactory().get("/", headers={"Host": "live.example.com"})
    request.session = {}
    html = Template("{% load fanfare %}{% fanfare_client %}").render(RequestContext(request))
    assert config(html)["csrfCookie"] == ""


@pytest.mark.parametrize(
    ("name", "value", "key", "expected"),
    [
        ("CSRF_COOKIE_NAME", "token", "csrfCookie", "token"),
        ("CSRF_COOKIE_HTTPONLY", True, "csrfCookie", ""),
        ("CSRF_USE_SESSIONS", False, "csrfCookie", "csrftoken"),
        ("CSRF_HEADER_NAME", "HTTP_X_XSRF_TOKEN", "csrfHeader", "X-XSRF-TOKEN"),
        ("FANFARE", {"PUBLIC_URL": "https://live.example.com"}, "samePlace", False),
        ("FANFARE", {}, "samePlace", True),
    ],
)
def test_settings_of_the_project_are_in_the_config(
    settings: Any, name: str, value: object, key: str, expected: object
) -> None:
    setattr(settings, name, value)
    assert config(rendered())[key] == expected


def test_auth_endpoints_stay_on_the_host_of_the_page(settings: Any) -> None:
    settings.FANFARE = {"PUBLIC_URL": "https://realtime.example.com/fan"}
    found = config(rendered())
    assert (found["options"]["wsHost"], found["options"]["wsPath"]) == ("realtime.example.com", "/fan")
    assert found["authEndpoint"] == "/pusher/auth"


def test_missing_auth_endpoints_are_named_with_the_line_to_write(settings: Any) -> None:
    settings.ROOT_URLCONF = Empty
    with pytest.raises(TemplateSyntaxError, match=r'add path\("", include\("fanfare.urls"\)\)'):
        rendered()


def test_missing_application_leaves_the_page_without_a_client(
    application: models.Application, caplog: pytest.LogCaptureFixture
) -> None:
    application.delete()
    assert "<script" not in rendered()
    assert "The page /page/ has no client" in caplog.text


def test_missing_request_is_refused_with_the_context_processor() -> None:
    with pytest.raises(TemplateSyntaxError, match="needs the request: render the page with render"):
        Template("{% load fanfare %}{% fanfare_client %}").render(Context())
