"""The member in the channel_data of a presence channel."""

from __future__ import annotations

import pytest

from fanfare.applications import registry
from fanfare.engine import interface
from fanfare.protocol import authorization, refusals

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


def test_user_id_that_is_too_long_is_refused_with_both_numbers() -> None:
    with pytest.raises(refusals.LimitReached, match=r"11 characters; 10 are allowed"):
        authorization.parse_member('{"user_id":"12345678901"}', LIMITS)
