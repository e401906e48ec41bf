"""Authorization of a subscribe, and the member of a presence channel."""

from __future__ import annotations

from typing import Any

import pytest

from fanfare.applications import registry
from fanfare.engine import interface
from fanfare.protocol import authorization, capabilities, refusals
from tests.unit.protocol import fakes

LIMITS = registry.Limits(max_member_bytes=300, max_user_id=10)


@pytest.mark.parametrize(
    ("channel_data", "member"),
    [
        ('{"user_id":"42"}', ("42", "null")),
        ('{"user_id":42}', ("42", "null")),
        ('{"user_id":0}', ("0", "null")),
        ('{"user_id":-1}', ("-1", "null")),
        ('{"user_id":"1","user_info":null}', ("1", "null")),
        ('{"user_id":"1","user_info": { "name" : "Ünï" } }', ("1", '{"name":"Ünï"}')),
        ('{"user_id":"1","user_info":[1,"x"]}', ("1", '[1,"x"]')),
        ('{"user_id":"1","user_id":"2","other":true}', ("2", "null")),
    ],
)
def test_member_has_a_text_id_and_json_info(channel_data: str, member: tuple[str, str]) -> None:
    assert authorization.parse_member(channel_data, LIMITS) == interface.Member(*member)


@pytest.mark.parametrize(
    "channel_data",
    ["", "{", "null", "1", "[]", '"x"', "{}"]
    + [f'{{"user_id":{value}}}' for value in ("null", "true", "false", "1.0", "1e2", '""', "[]", "{}", "NaN", "1e999")]
    + [r'{"user_id":"\u0000"}', r'{"user_id":"4\u00002"}']
    + ['{"user_id":18446744073709551616}', '{"user_id":"\\ud800"}', '{"user_id":"\ud800"}'],
)
def test_channel_data_without_a_valid_user_id_is_refused(channel_data: str) -> None:
    with pytest.raises(refusals.Unauthorized) as refusal:
        authorization.parse_member(channel_data, LIMITS)
    assert (refusal.value.reason, refusal.value.status) == ("invalid_member", 401)


def test_user_info_that_is_nested_too_deeply_is_refused() -> None:
    deep = "[" * 500 + "]" * 500
    with pytest.raises(refusals.Unauthorized, match="too deeply"):
        authorization.parse_member(f'{{"user_id":"1","user_info":{deep}}}', registry.Limits())


def test_channel_data_that_is_too_big_is_refused_with_both_numbers_in_bytes() -> None:
    data = '{"user_id":"1","user_info":"' + "ü" * 150 + '"}'
    with pytest.raises(refusals.LimitReached, match=r"330 bytes; 300 are allowed") as refusal:
        authorization.parse_member(data, LIMITS)
    assert refusal.value.status == 4301


def test_largest_member_is_accepted() -> None:
    data = '{"user_id":"1234567890","user_info":"'.ljust(LIMITS.max_member_bytes - 2, "x") + '"}'
    assert authorization.parse_member(data, LIMITS).user_id == "1234567890"
    with pytest.raises(refusals.LimitReached, match=r"301 bytes; 300 are allowed"):
        authorization.parse_member(f"{data} ", LIMITS)


def test_user_id_that_is_too_long_is_refused_with_both_numbers() -> None:
    with pytest.raises(refusals.LimitReached, match=r"11 characters; 10 are allowed"):
        authorization.parse_member('{"user_id":"12345678901"}', LIMITS)


# -- a signed-in user, or the user of a token, as the member -----------------------------------------------------------

CHANNEL = "presence-room"
WITHOUT_MEMBER = {"auth": fakes.auth(CHANNEL)}
NOW = 1_700_000_000.0


def authorize(data: dict[str, Any], user: interface.Member | None = None) -> authorization.Authorized:
    application = fakes.application(max_member_bytes=300, max_user_id=10)
    return authorization.authorize(application, fakes.SOCKET_ID, CHANNEL, data, user=user, now=NOW)


def with_token(user_id: str | None, info: str = "null") -> dict[str, Any]:
    rights = frozenset([capabilities.SUBSCRIBE, capabilities.PRESENCE])
    capability = capabilities.Capability((CHANNEL,), NOW + 60, user_id, issued=NOW, rights=rights, info=info)
    return {"auth": capabilities.sign(fakes.APPLICATION.secret, capability)}


def info_of(size: int) -> str:
    return '"' + "x" * (size - 2) + '"'


def test_user_info_of_the_largest_size_joins_and_a_larger_one_is_refused() -> None:
    member = interface.Member("42", info_of(300))
    assert authorize(WITHOUT_MEMBER, member).member == member
    assert authorize(with_token("42", member.info)).member == member
    too_big = info_of(301)
    for data, user in ((WITHOUT_MEMBER, interface.Member("42", too_big)), (with_token("42", too_big), None)):
        with pytest.raises(refusals.LimitReached, match=r"301 bytes; 300 are allowed") as refusal:
            authorize(data, user)
        assert refusal.value.reason == "member_too_big"


@pytest.mark.parametrize("user_id", [None, "", "x" * 11])
def test_token_without_a_valid_user_joins_no_presence_channel(user_id: str | None) -> None:
    assert authorize(with_token("x" * 10)).member == interface.Member("x" * 10, "null")
    with pytest.raises(refusals.Unauthorized, match="1 to 10 characters") as refusal:
        authorize(with_token(user_id))
    assert refusal.value.reason == "invalid_member"


@pytest.mark.parametrize(("name", "reason"), [("auth", "no_auth"), ("channel_data", "invalid_member")])
def test_auth_and_channel_data_that_are_no_text_are_refused(name: str, reason: str) -> None:
    with pytest.raises(refusals.Unauthorized, match=f"{name} must be a string") as refusal:
        authorize({**WITHOUT_MEMBER, name: {}}, interface.Member("42", "null"))
    assert refusal.value.reason == reason
