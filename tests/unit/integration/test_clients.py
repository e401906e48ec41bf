from __future__ import annotations

from typing import Any

import pytest
from django.test import RequestFactory
from django.urls import set_script_prefix

from fanfare.applications import models
from fanfare.integration import clients

REMOTE = {
    "REMOTE_URL": "https://remote.example.com:8443/fan",
    "REMOTE_APP_ID": "9",
    "REMOTE_KEY": "key-9",
    "REMOTE_SECRET": "secret-9",
}


@pytest.mark.parametrize(
    ("values", "place"),
    [
        ({"PUBLIC_URL": "https://realtime.example.com"}, ("realtime.example.com", 443, True, None)),
        ({"PUBLIC_URL": "http://10.0.0.7:8100/fan/"}, ("10.0.0.7", 8100, False, "/fan")),
        ({"PUBLIC_URL": "http://[::1]:8100"}, ("[::1]", 8100, False, None)),
        ({"URL_PREFIX": "/realtime/"}, ("shop.example.com", 443, True, "/realtime")),
        ({"URL_PREFIX": "/realtime/", "PUBLIC_URL": "https://a.example/b"}, ("a.example", 443, True, "/b")),
        (REMOTE, ("remote.example.com", 8443, True, "/fan")),
        ({**REMOTE, "PUBLIC_URL": "https://public.example.com"}, ("public.example.com", 443, True, None)),
    ],
)
def test_public_url_and_prefix_place_the_sockets(
    application: models.Application, settings: Any, values: dict[str, str], place: tuple[str, int, bool, str | None]
) -> None:
    settings.FANFARE = values
    settings.ALLOWED_HOSTS = ["shop.example.com"]
    request = RequestFactory().get("/", secure=True, headers={"Host": "shop.example.com"})
    options = clients.pusher_options(request)["options"]
    assert (options["wsHost"], options["wsPort"], options["forceTLS"], options.get("wsPath")) == place


def test_script_name_is_a_part_of_the_path(application: models.Application, settings: Any) -> None:
    settings.FANFARE = {"URL_PREFIX": "/realtime/"}
    set_script_prefix("/shop/")
    try:
        options = clients.pusher_options(RequestFactory().get("/", headers={"Host": "localhost"}))["options"]
    finally:
        set_script_prefix("/")
    assert options["wsPath"] == "/shop/realtime"


@pytest.mark.parametrize(("forwarded", "port"), [(True, 8443), (False, 443)])
def test_forwarded_port_is_used_if_the_project_trusts_it(
    application: models.Application, settings: Any, forwarded: bool, port: int
) -> None:
    settings.USE_X_FORWARDED_PORT = forwarded
    request = RequestFactory().get("/", secure=True, headers={"Host": "localhost", "X-Forwarded-Port": "8443"})
    assert clients.pusher_options(request)["options"]["wsPort"] == port


@pytest.mark.parametrize(
    ("host", "secure", "address"),
    [
        ("localhost:8000", False, ("localhost", 8000, False)),
        ("localhost", False, ("localhost", 80, False)),
        ("localhost", True, ("localhost", 443, True)),
        ("127.0.0.1:9000", True, ("127.0.0.1", 9000, True)),
        ("[::1]:8000", False, ("[::1]", 8000, False)),
        ("[::1]", False, ("[::1]", 80, False)),
    ],
)
def test_options_name_the_host_and_port_of_the_request(
    application: models.Application, host: str, secure: bool, address: tuple[str, int, bool]
) -> None:
    request = RequestFactory().get("/", secure=secure, headers={"Host": host})
    answer = clients.pusher_options(request)
    options: dict[str, Any] = answer["options"]
    assert answer["key"] == "key-7"
    assert (options["wsHost"], options["wsPort"], options["forceTLS"]) == address
    assert options["wssPort"] == options["wsPort"]
    assert "secret-7" not in str(answer)
