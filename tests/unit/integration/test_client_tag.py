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


def test_the_page_gets_all_that_a_client_needs_and_no_secret(application: models.Application) -> None:
    html = rendered()
    found = config(html)
    assert found["key"] == "key-7"
    assert (found["options"]["wsHost"], found["options"]["forceTLS"]) == ("live.example.com", True)
    assert (found["authEndpoint"], found["userAuthEndpoint"]) == ("/pusher/auth", "/pusher/user-auth")
    assert len(found["csrfToken"]) == 64
    assert found["csrfCookie"] == "csrftoken"
    assert application.secret not in html


def test_its_scripts_are_files_of_this_server_in_the_order_in_which_they_need_each_other() -> None:
    names = scripts(rendered())
    assert names == ["fanfare/vendor/pusher-js/pusher.min.js", "fanfare/resume.js", "fanfare/client.js"]
    for name in names:
        assert finders.find(name), name


def test_a_page_with_encrypted_channels_gets_the_build_that_decrypts() -> None:
    assert scripts(rendered("encrypted=True"))[0] == "fanfare/vendor/pusher-js/pusher-with-encryption.min.js"
    assert finders.find("fanfare/vendor/pusher-js/pusher-with-encryption.min.js")


def test_the_resume_plugin_can_be_left_out() -> None:
    assert "fanfare/resume.js" not in scripts(rendered("resume=False"))


def test_every_script_that_runs_carries_the_nonce() -> None:
    html = rendered("nonce=nonce", nonce='a"b')
    assert html.count('nonce="a&quot;b"') == html.count("<script src=") == 3
    assert "nonce" not in rendered()


def test_what_the_page_adds_cannot_end_the_script() -> None:
    html = rendered("params=params sign_in=True", params={"guest": "</script><script>alert(1)</script>"})
    assert "alert(1)</script>" not in html
    assert config(html)["params"]["guest"].endswith("</script>")
    assert config(html)["signIn"] is True


def test_where_the_token_lives_in_the_session_no_cookie_is_looked_for(settings: Any) -> None:
    settings.CSRF_USE_SESSIONS = True
    request = RequestFactory().get("/", headers={"Host": "live.example.com"})
    request.session = {}
    html = Template("{% load fanfare %}{% fanfare_client %}").render(RequestContext(request))
    assert config(html)["csrfCookie"] == ""


def test_without_an_application_the_rest_of_the_page_stands(
    application: models.Application, caplog: pytest.LogCaptureFixture
) -> None:
    application.delete()
    assert "<script" not in rendered()
    assert "No client on /page/" in caplog.text


def test_without_the_request_it_says_what_is_missing() -> None:
    with pytest.raises(TemplateSyntaxError, match="needs the request"):
        Template("{% load fanfare %}{% fanfare_client %}").render(Context())
