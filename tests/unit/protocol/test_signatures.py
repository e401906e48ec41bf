"""Signatures, against vectors that were computed elsewhere."""

from __future__ import annotations

import hmac
from typing import Any

import pusher
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fanfare.protocol import refusals, signatures

KEY, SECRET, SOCKET_ID = "278d425bdf160c739803", "7ad3773142a6692b25b8", "1234.1234"

PRIVATE = "58df8b0c36d6982b82c3ecf6b4662e34fe8c25bba48f5369f135bf843651c3a4"
CHANNEL_DATA = '{"user_id":10,"user_info":{"name":"Mr. Channels"}}'
PRESENCE = "31935e7d86dba64c2a90aed31fdc61869f9b22ba9d8863bba239c03ca481bc80"
OTHER_PRESENCE = "afaed3695da2ffd16931f457e338e6c9f2921fa133ce7dac49f529792be6304c"
USER = "4708d583dada6a56435fb8bc611c77c359a31eebde13337c16ab43aa6de336ba"
REQUEST = (
    "POST\n/apps/3/events\nauth_key=278d425bdf160c739803&auth_timestamp=1353088179&auth_version=1.0"
    "&body_md5=ec365a775a4cd0599faeb73354201b6f"
)


def check(auth: str, channel: str, channel_data: str | None = None) -> None:
    signatures.check_subscription(auth, KEY, [SECRET], socket_id=SOCKET_ID, channel=channel, channel_data=channel_data)


@pytest.mark.parametrize(
    ("text", "signature"),
    [
        (f"{SOCKET_ID}:private-foobar", PRIVATE),
        (f"{SOCKET_ID}:presence-foobar:{CHANNEL_DATA}", PRESENCE),
        (f"{SOCKET_ID}:presence-foobar:{CHANNEL_DATA.replace('Channels', 'Pusher')}", OTHER_PRESENCE),
        (f'{SOCKET_ID}::user::{{"id":"12345"}}', USER),
        (REQUEST, "da454824c97ba181a32ccc17a72625ba02771f50b50e1e7430e47a1f3f457e6c"),
    ],
)
def test_a_text_has_the_signature_of_its_vector(text: str, signature: str) -> None:
    assert signatures.sign(SECRET, text) == signature
    assert signatures.matches(SECRET, text, signature)


def test_auth_strings_are_the_key_and_the_signature() -> None:
    assert signatures.subscription_auth(KEY, SECRET, SOCKET_ID, "private-foobar") == f"{KEY}:{PRIVATE}"
    assert signatures.subscription_auth(KEY, SECRET, SOCKET_ID, "presence-foobar", CHANNEL_DATA) == f"{KEY}:{PRESENCE}"
    assert signatures.user_auth(KEY, SECRET, SOCKET_ID, '{"id":"12345"}') == f"{KEY}:{USER}"


def test_signatures_of_the_vendors_library_are_accepted() -> None:
    client = pusher.Pusher(app_id="3", key=KEY, secret=SECRET)
    check(client.authenticate("private-foobar", SOCKET_ID)["auth"], "private-foobar")
    answer = client.authenticate("presence-foobar", SOCKET_ID, {"user_id": "1", "user_info": {"name": "Ünïcödé"}})
    check(answer["auth"], "presence-foobar", answer["channel_data"])


def test_channel_data_of_a_private_channel_may_be_signed() -> None:
    for signed in (CHANNEL_DATA, None):
        auth = signatures.subscription_auth(KEY, SECRET, SOCKET_ID, "private-foobar", signed)
        check(auth, "private-foobar", CHANNEL_DATA)


def test_channel_data_of_a_presence_channel_must_be_signed() -> None:
    with pytest.raises(refusals.Unauthorized):
        check(signatures.subscription_auth(KEY, SECRET, SOCKET_ID, "presence-foobar"), "presence-foobar", CHANNEL_DATA)


@pytest.mark.parametrize(
    ("auth", "reason"),
    [
        ("", "no_auth"),
        (PRIVATE, "wrong_key"),
        (f"other:{PRIVATE}", "wrong_key"),
        (f":{PRIVATE}", "wrong_key"),
        (KEY, "wrong_key"),
        (f"{KEY}:", "wrong_signature"),
        (f"{KEY}:{PRIVATE.upper()}", "wrong_signature"),
        (f"{KEY}:{PRIVATE} ", "wrong_signature"),
        (f"{KEY}:{PRESENCE}", "wrong_signature"),
        (f"{KEY}:ünïcödé", "wrong_signature"),
        (f"{KEY}:\ud800", "wrong_signature"),
    ],
)
def test_a_wrong_auth_string_is_refused_with_its_reason(auth: str, reason: str) -> None:
    with pytest.raises(refusals.Unauthorized) as refusal:
        check(auth, "private-foobar")
    assert refusal.value.reason == reason


def test_a_refusal_shows_what_was_signed_and_never_the_signature_that_was_expected() -> None:
    with pytest.raises(refusals.Unauthorized) as refusal:
        check(f"{KEY}:52aab", "private-foobar")
    assert str(refusal.value) == (
        "Invalid signature: Expected HMAC SHA256 hex digest of 1234.1234:private-foobar, but got 52aab"
    )
    assert PRIVATE not in str(refusal.value)


def test_a_user_is_checked_against_the_signature_of_the_user_data() -> None:
    signatures.check_user(f"{KEY}:{USER}", KEY, [SECRET], socket_id=SOCKET_ID, user_data='{"id":"12345"}')
    with pytest.raises(refusals.SignInRefused):
        signatures.check_user(f"{KEY}:{USER}", KEY, [SECRET], socket_id=SOCKET_ID, user_data='{"id":"12346"}')


def test_any_of_several_secrets_may_have_signed() -> None:
    auth = signatures.subscription_auth(KEY, "the old one", SOCKET_ID, "private-foobar")
    options: dict[str, Any] = {"socket_id": SOCKET_ID, "channel": "private-foobar", "channel_data": None}
    signatures.check_subscription(auth, KEY, [SECRET, "the old one"], **options)
    with pytest.raises(refusals.Unauthorized):
        signatures.check_subscription(auth, KEY, [SECRET], **options)


@pytest.mark.parametrize("length", [1, 63, 64, 65, 200])
def test_secret_of_any_length_signs_as_the_standard_library_does(length: int) -> None:
    secret = "k" * length
    assert signatures.sign(secret, "text") == hmac.new(secret.encode(), b"text", "sha256").hexdigest()


@given(st.text(), st.text(), st.text())
def test_no_text_makes_a_check_raise_anything_but_a_refusal(auth: str, channel: str, channel_data: str) -> None:
    with pytest.raises(refusals.Unauthorized):
        check(f"{KEY}:{auth}", channel, channel_data)
