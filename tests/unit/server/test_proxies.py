from __future__ import annotations

import logging

import pytest
import uvicorn
from django.core.exceptions import ImproperlyConfigured
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from fanfare.server import proxies


async def seen(trusted, peer, *headers, kind="http", scheme="http"):
    """(client, scheme) as the application behind sees them."""
    found = []

    async def application(scope, receive, send):
        found.append((scope["client"] and scope["client"][0], scope["scheme"]))

    scope = {
        "type": kind,
        "scheme": scheme,
        "client": (peer, 4711) if peer else None,
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers],
    }
    await proxies.trusting(application, proxies.Trusted(trusted))(scope, None, None)
    return found[0]


FORWARDED = ("x-forwarded-for", "203.0.113.9")
HTTPS = ("x-forwarded-proto", "https")


async def test_no_peer_is_trusted_by_default():
    assert await seen([], "127.0.0.1", FORWARDED, HTTPS) == ("127.0.0.1", "http")


async def test_a_trusted_proxy_is_believed():
    assert await seen(["127.0.0.1"], "127.0.0.1", FORWARDED, HTTPS) == ("203.0.113.9", "https")


async def test_a_stranger_is_not_believed_where_a_proxy_is_trusted():
    assert await seen(["10.0.0.0/8"], "192.0.2.1", FORWARDED, HTTPS) == ("192.0.2.1", "http")


async def test_addresses_that_the_client_wrote_itself_do_not_count():
    header = ("x-forwarded-for", "1.2.3.4, 203.0.113.9")
    assert await seen(["10.0.0.1"], "10.0.0.1", header) == ("203.0.113.9", "http")


async def test_the_list_is_walked_over_every_trusted_proxy():
    header = ("x-forwarded-for", "1.2.3.4, 203.0.113.9, 10.0.0.2")
    assert (await seen(["10.0.0.0/8"], "10.0.0.1", header))[0] == "203.0.113.9"


async def test_several_headers_are_one_list():
    headers = [("x-forwarded-for", "203.0.113.9"), ("x-forwarded-for", "10.0.0.2")]
    assert (await seen(["10.0.0.0/8"], "10.0.0.1", *headers))[0] == "203.0.113.9"


async def test_a_client_inside_the_trusted_network_is_the_leftmost_one():
    assert (await seen(["10.0.0.0/8"], "10.0.0.1", ("x-forwarded-for", "10.0.0.7")))[0] == "10.0.0.7"


@pytest.mark.parametrize("garbage", ["", "unknown", "_hidden", "1.2.3", "é", "203.0.113.9, unknown"])
async def test_garbage_leaves_the_peer_as_it_is(garbage):
    assert (await seen(["10.0.0.1"], "10.0.0.1", ("x-forwarded-for", garbage)))[0] == "10.0.0.1"


@pytest.mark.parametrize(
    ("written", "address"),
    [
        ("203.0.113.9:4711", "203.0.113.9"),
        ("2001:db8::1", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("[2001:db8::1]:4711", "2001:db8::1"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
    ],
)
async def test_an_address_is_understood_as_proxies_write_it(written, address):
    assert (await seen(["10.0.0.1"], "10.0.0.1", ("x-forwarded-for", written)))[0] == address


async def test_a_peer_on_a_dual_stack_socket_is_found_by_its_ipv4_address():
    assert (await seen(["10.0.0.0/8"], "::ffff:10.0.0.1", FORWARDED))[0] == "203.0.113.9"


async def test_a_peer_on_a_unix_socket_is_trusted_by_the_word_unix():
    assert (await seen(["unix"], None, FORWARDED))[0] == "203.0.113.9"
    assert (await seen(["10.0.0.1"], None, FORWARDED))[0] is None


@pytest.mark.parametrize(("said", "scheme"), [("https", "wss"), ("wss", "wss"), ("http", "ws"), ("ftp", "ws")])
async def test_a_websocket_has_the_websocket_form_of_the_scheme(said, scheme):
    found = await seen(["10.0.0.1"], "10.0.0.1", ("x-forwarded-proto", said), kind="websocket", scheme="ws")
    assert found[1] == scheme


async def test_without_a_trusted_proxy_nothing_is_wrapped():
    async def application(scope, receive, send): ...

    assert proxies.trusting(application, proxies.Trusted([])) is application


@pytest.mark.parametrize("entry", ["proxy.example", "10.0.0.1/8", "300.1.1.1", "*"])
def test_a_bad_entry_is_refused_by_name_and_value(entry):
    with pytest.raises(ImproperlyConfigured, match="FANFARE_TRUSTED_PROXIES has") as caught:
        proxies.Trusted([entry])
    assert repr(entry) in str(caught.value)


def loaded_config(**options):
    async def application(scope, receive, send):
        application.client = scope["client"][0]

    config = uvicorn.Config(application, log_config=None, **options)
    config.load()
    return config, application


async def ask(config, *, peer="127.0.0.1"):
    scope = {"type": "http", "client": (peer, 1), "scheme": "http", "headers": [(b"x-forwarded-for", b"203.0.113.9")]}
    await config.loaded_app(scope, None, None)


async def test_uvicorns_own_trust_in_this_machine_is_taken_over():
    config, application = loaded_config()
    assert isinstance(config.loaded_app, ProxyHeadersMiddleware), "the pinned uvicorn still does it this way"
    await ask(config)
    assert application.client == "203.0.113.9", "this is why"

    proxies.take_over(config)
    await ask(config)
    assert application.client == "127.0.0.1"


async def test_taking_over_says_so_where_a_flag_asked_uvicorn(caplog):
    config, application = loaded_config(forwarded_allow_ips="*")
    with caplog.at_level(logging.WARNING):
        proxies.take_over(config)
    await ask(config)
    assert application.client == "127.0.0.1"
    assert "FANFARE_TRUSTED_PROXIES" in caplog.text


@pytest.mark.parametrize("default", ["127.0.0.1,::1", ["127.0.0.1", "::1"]], ids=["uvicorn", "gunicorn"])
async def test_taking_over_is_silent_where_no_flag_was_given(caplog, default):
    config, _application = loaded_config(forwarded_allow_ips=default)
    with caplog.at_level(logging.WARNING):
        proxies.take_over(config)
    assert caplog.text == ""


def test_there_is_nothing_to_take_over_without_proxy_headers():
    config, _application = loaded_config(proxy_headers=False)
    proxies.take_over(config)
    assert not isinstance(config.loaded_app, ProxyHeadersMiddleware)
