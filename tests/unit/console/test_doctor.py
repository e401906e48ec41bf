"""The auth doctor names the mistake, and never shows a secret."""

from __future__ import annotations

import json
from urllib.parse import urlencode

import pytest

from fanfare.applications import registry
from fanfare.console import doctor
from fanfare.protocol import signatures

NOW = 1_800_000_000.0
APP = registry.Application(
    "1", "key-of-shop", "secret-of-shop", name="Shop", previous_secret="old-secret", previous_secret_until=NOW + 60
)
OTHER = registry.Application("2", "key-of-blog", "secret-of-blog", name="Blog")
SOCKET, CHANNEL = "12.34", "private-orders"


def examine(kind: str = doctor.SUBSCRIPTION, **fields: str) -> doctor.Diagnosis:
    given = {"socket_id": SOCKET, "channel": CHANNEL, **fields}
    found = doctor.examine(kind, given, APP, [APP, OTHER], now=NOW)
    shown = json.dumps(found.to_json())
    for secret in (APP.secret, APP.previous_secret, OTHER.secret):
        assert secret not in shown
    return found


def auth(text: str, secret: str = APP.secret, key: str = APP.key) -> str:
    return f"{key}:{signatures.sign(secret, text)}"


RIGHT = f"{SOCKET}:{CHANNEL}"


@pytest.mark.parametrize(
    ("given", "ok", "words"),
    [
        (auth(RIGHT), True, "made with the current secret"),
        (auth(RIGHT, "old-secret"), True, "previous secret, which is still valid"),
        (auth(RIGHT, OTHER.secret), False, "the secret of another application, Blog"),
        (auth(RIGHT, APP.key), False, "the key in place of the secret"),
        (auth(RIGHT, key=OTHER.key), False, "The key belongs to another application, Blog"),
        (auth(RIGHT, key="1"), False, "begins with the application's id"),
        (auth(RIGHT, key="nonsense"), False, "'nonsense' is not the key"),
        (auth(f"{CHANNEL}:{SOCKET}"), False, "the parts are in the wrong order"),
        (auth(SOCKET), False, "the channel was left out"),
        (auth(RIGHT, "nothing"), False, "not of this text"),
        (auth(RIGHT).upper().replace("KEY-OF-SHOP", APP.key), False, "upper case"),
        (signatures.sign(APP.secret, RIGHT), False, "no colon"),
        ("", False, "no colon"),
    ],
)
def test_mistake_of_a_subscription_is_named(given: str, ok: bool, words: str) -> None:
    found = examine(auth=given)
    assert any(words in finding["text"] and finding["ok"] is ok for finding in found.findings), found.findings
    assert found.signed == RIGHT
    assert found.to_json()["ok"] is ("accepts" in found.verdict)


def test_json_that_was_encoded_again_after_it_was_signed_is_recognised() -> None:
    signed, sent = '{"user_id": "7", "user_info": {"name": "Ann"}}', '{"user_id":"7","user_info":{"name":"Ann"}}'
    found = examine(channel="presence-a", channel_data=sent, auth=auth(f"{SOCKET}:presence-a:{signed}"))
    assert "encoded again" in json.dumps(found.findings)
    assert found.verdict == "The server refuses it."


def test_presence_without_channel_data_is_explained() -> None:
    found = examine(channel="presence-a", channel_data='{"user_id":"7"}', auth=auth(f"{SOCKET}:presence-a"))
    assert "channel_data was left out" in json.dumps(found.findings)


def test_sign_in_is_examined_with_its_own_text() -> None:
    data = '{"id":"7"}'
    found = examine(doctor.SIGN_IN, user_data=data, auth=auth(f"{SOCKET}::user::{data}"))
    assert found.to_json()["ok"]
    found = examine(doctor.SIGN_IN, user_data=data, auth=auth(f"{SOCKET}:{data}"))
    assert found.verdict == "The server refuses it."


def test_channel_data_that_is_nested_too_deeply_is_refused() -> None:
    data = "[" * 20_000
    found = examine(channel="presence-a", channel_data=data, auth=auth(f"{SOCKET}:presence-a:{{}}"))
    assert found.verdict == "The server refuses it."


def url(secret: str = APP.secret, *, at: float = NOW, key: str = APP.key) -> str:
    fields = {"auth_key": key, "auth_timestamp": str(int(at)), "auth_version": "1.0", "body_md5": "a" * 32}
    text = f"POST\n/apps/1/events\n{'&'.join(f'{name}={value}' for name, value in sorted(fields.items()))}"
    return "https://rt.example/apps/1/events?" + urlencode({**fields, "auth_signature": signatures.sign(secret, text)})


@pytest.mark.parametrize(
    ("address", "verdict", "words"),
    [
        (url(), "accepts", "The signature is right."),
        (url(at=NOW - 700), "because of its time", "700 s behind"),
        (url(at=NOW + 700), "because of its time", "700 s ahead of"),
        (url(at=NOW - 9_000), "because of its time", "2 h behind"),
        (url(at=NOW + 400 * 86_400), "because of its time", "400 days ahead of"),
        (url(OTHER.secret), "refuses", "another application, Blog"),
        (url("wrong"), "refuses", "Invalid signature"),
        (url(key=OTHER.key), "refuses", "The key belongs to another application"),
        ("https://rt.example/apps/1/events", "refuses", "not the key"),
        ("https://[rt.example/apps/1/events", "refuses", "not a URL: Invalid IPv6 URL"),
        (url().replace("auth_timestamp=1800000000", "auth_timestamp=1800000000000"), "refuses", "milliseconds"),
    ],
)
def test_request_of_the_api_is_examined_with_its_clock(address: str, verdict: str, words: str) -> None:
    found = examine(doctor.API, method="POST", url=address)
    assert verdict in found.verdict
    assert words in json.dumps(found.findings)
