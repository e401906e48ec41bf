from __future__ import annotations

import json
import re
from typing import Any

import pytest
from django.contrib.staticfiles import finders
from django.template import Context, RequestContext, Template, TemplateSyntaxError
from django.test import RequestFactory

from fanfare.applications import models


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


def test_resume_plugin_can_be_left_out() -> None:
    assert "fanfare/resume.js" not in scripts(rendered("resume=False"))


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


def test_missing_application_leaves_the_page_without_a_client(
    application: models.Application, caplog: pytest.LogCaptureFixture
) -> None:
    application.delete()
    assert "<script" not in rendered()
    assert "No client on /page/" in caplog.text


def test_missing_request_is_refused_with_the_context_processor() -> None:
    with pytest.raises(TemplateSyntaxError, match="needs the request"):
        Template("{% load fanfare %}{% fanfare_client %}").render(Context())
