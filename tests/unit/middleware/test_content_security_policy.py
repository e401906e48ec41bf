"""The Content-Security-Policy of pages."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from django.http import HttpResponse
from django.test import Client, RequestFactory, override_settings
from django.urls import path as path_to

from fanfare.middleware import ContentSecurityPolicy
from tests.harness import deployments

HEADER = "Content-Security-Policy"


def answer(response: HttpResponse | None = None, **request: object) -> HttpResponse:
    made = RequestFactory().get("/", **request)  # type: ignore[arg-type]
    found: HttpResponse = ContentSecurityPolicy(lambda _: response or HttpResponse())(made)
    return found


def test_page_gets_a_policy_without_inline_scripts() -> None:
    policy = answer()[HEADER]
    assert "default-src 'self';" in policy
    assert "unsafe" not in policy
    assert "ws://testserver" in policy


def test_error_page_for_a_host_that_is_not_allowed_has_a_policy(client: Client) -> None:
    with override_settings(ALLOWED_HOSTS=["realtime.example.com"]):
        response = client.get("/", headers={"Host": "other.example"})
    assert response.status_code == 400
    assert "connect-src 'self';" in response[HEADER]
    assert "other.example" not in response[HEADER]


def test_page_over_tls_connects_over_tls_only() -> None:
    policy = answer(secure=True)[HEADER]
    assert "wss://testserver" in policy
    assert "ws://testserver" not in policy.replace("wss:", "")


@override_settings(FANFARE={"PUBLIC_URL": "https://realtime.example.com"})
def test_sockets_of_another_host_are_allowed() -> None:
    assert "wss://realtime.example.com" in answer(secure=True)[HEADER]


def test_policy_of_a_page_wins() -> None:
    assert answer(HttpResponse(headers={HEADER: "default-src 'none'"}))[HEADER] == "default-src 'none'"


@pytest.mark.parametrize("debug", [True, False])
@pytest.mark.parametrize("path", ["/nothing", "/broken"])
def test_error_page_of_django_keeps_its_inline_styles_with_debug(client: Client, path: str, debug: bool) -> None:
    def broken(_request: object) -> HttpResponse:
        raise ZeroDivisionError

    urls = type("Urls", (), {"urlpatterns": [path_to("broken", broken)]})
    client.raise_request_exception = False
    with override_settings(DEBUG=debug, ROOT_URLCONF=urls, MIDDLEWARE=["fanfare.middleware.ContentSecurityPolicy"]):
        response = client.get(path)
    assert ("<style" in response.content.decode()) is debug
    assert response.has_header(HEADER) is not debug


async def test_asynchronous_view_gets_the_policy() -> None:
    async def view(_request: object) -> HttpResponse:
        return HttpResponse()

    assert HEADER in await ContentSecurityPolicy(view)(RequestFactory().get("/"))


@pytest.mark.parametrize(("demo", "expected"), [("0", "no issues"), ("1", "FANFARE_DEMO")])
def test_production_settings_pass_the_deployment_checks(tmp_path: object, demo: str, expected: str) -> None:
    """Of this repository's project, with the variables of docs/how-to/secure.md."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(deployments.OWN_PREFIXES)},
        "FANFARE_TLS": "1",
        "FANFARE_DEMO": demo,
        "FANFARE_ALLOWED_HOSTS": "realtime.example.com",
        "FANFARE_DATA_DIR": str(tmp_path),
        "FANFARE_ENV_FILE": os.devnull,
    }
    code = (
        "import resource, sys\n"
        "_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))\n"
        "sys.argv = ['manage.py', 'check', '--deploy', '--fail-level', 'ERROR']\n"
        "import manage; manage.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=deployments.REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert expected in done.stdout + done.stderr
