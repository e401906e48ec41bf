from __future__ import annotations

import base64
import hashlib
import hmac
import json
import math
import time
from typing import Any

import jwt
import pytest

from fanfare.protocol import capabilities, refusals, revocations

SECRET = "0123456789abcdef0123"  # as long as those that are generated
NOW = 1_800_000_000.0


def by_hand(claims: Any, secret: str = SECRET, header: dict[str, str] | None = None) -> str:
    """A token as RFC 7519 describes it, without a library."""

    def part(value: object) -> bytes:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=")

    signed = part(header or {"alg": "HS256", "typ": "JWT"}) + b"." + part(claims)
    signature = hmac.new(secret.encode(), signed, hashlib.sha256).digest()
    return (signed + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")).decode()


def reason(token: str, *secrets: str) -> str:
    with pytest.raises(refusals.InvalidToken) as refused:
        capabilities.verify(token, secrets or (SECRET,), NOW)
    assert len(token) < 10 or token not in str(refused.value)
    return refused.value.reason


def test_signed_token_is_read_by_pyjwt() -> None:
    """With a secret of RFC 7518's length, so that the library has nothing to say about it."""
    long = SECRET * 2
    before = time.time()
    token = capabilities.sign(long, capabilities.Capability(("private-a",), time.time() + 60, "42"))
    claims = jwt.decode(token, long, algorithms=["HS256"])
    assert (claims["channels"], claims["sub"]) == (["private-a"], "42")
    assert before - 0.001 <= claims["iat"] <= time.time() + 0.001
    assert jwt.get_unverified_header(token) == {"alg": "HS256", "typ": "JWT"}


def test_token_made_by_hand_is_read() -> None:
    token = by_hand({"channels": ["private-orders-*"], "exp": NOW + 60, "sub": "42", "extra": 1})
    grant = capabilities.verify(token, (SECRET,), NOW)
    assert grant == capabilities.Capability(("private-orders-*",), NOW + 60, "42")
    token = by_hand({"channels": ["private-a"], "exp": NOW + 60, "iat": NOW - 0.5})
    assert capabilities.verify(token, (SECRET,), NOW).issued == NOW - 0.5


def test_only_a_star_stands_for_any_characters() -> None:
    grant = capabilities.Capability(("private-orders-*", "private-a.b", "private-*-x"), NOW)
    for channel in ("private-orders-1", "private-orders-", "private-a.b", "private-1-x"):
        assert grant.covers(channel), channel
    for channel in ("private-orders", "xprivate-orders-1", "private-aXb", "private-a.bc", "private-x"):
        assert not grant.covers(channel), channel


@pytest.mark.parametrize(
    ("pattern", "covered", "others"),
    [
        ("*b*", ["b", "ab", "bc", "abc"], ["", "ac"]),
        ("a*b*c", ["abc", "a-b-c"], ["ac", "acb", "bc"]),
        ("*ab*ab*", ["abab", "xabyabz"], ["ab", "xab", "aab"]),
        ("*ab*b", ["abb", "ab-b"], ["ab", "abc"]),
    ],
)
def test_parts_of_a_pattern_follow_each_other_in_the_channel(
    pattern: str, covered: list[str], others: list[str]
) -> None:
    grant = capabilities.Capability((pattern,), NOW)
    assert [channel for channel in (*covered, *others) if grant.covers(channel)] == covered


def test_pattern_with_many_stars_is_matched_quickly() -> None:
    grant = capabilities.Capability(("*a" * 30 + "*" * 100 + "b",), NOW)
    begun = time.perf_counter()
    assert not grant.covers("a" * 200)
    assert time.perf_counter() - begun < 1.0


def test_token_of_the_previous_secret_is_accepted_while_it_is_given() -> None:
    token = by_hand({"channels": [], "exp": NOW + 1}, "old")
    assert capabilities.verify(token, (SECRET, "old"), NOW).channels == ()
    assert reason(token, SECRET) == "invalid_token"


def test_expired_token_has_a_code_of_its_own() -> None:
    assert reason(by_hand({"channels": ["a"], "exp": NOW})) == "expired_token"
    assert capabilities.verify(by_hand({"channels": ["a"], "exp": NOW + 0.1}), (SECRET,), NOW)


@pytest.mark.parametrize(
    "claims",
    [
        {"channels": ["a"]},
        {"channels": ["a"], "exp": "soon"},
        {"channels": ["a"], "exp": True},
        {"channels": ["a"], "exp": math.nan},
        {"channels": ["a"], "exp": math.inf},
        {"channels": ["a"], "exp": -math.inf},
        {"channels": ["a"], "exp": 10**400},
        {"channels": ["a"], "exp": 1e300},
        {"channels": ["a"], "exp": NOW + 60, "iat": math.nan},
        {"channels": ["a"], "exp": NOW + 60, "iat": "now"},
        {"channels": ["a"], "exp": NOW + 60, "iat": None},
        {"channels": "a", "exp": NOW + 60},
        {"channels": [1], "exp": NOW + 60},
        {"channels": ["a"] * 101, "exp": NOW + 60},
        {"channels": ["a"], "exp": NOW + 60, "sub": 42},
        {"channels": ["a"], "exp": NOW + 60, "sub": "4\0002"},
        {"channels": ["a"], "exp": NOW + 60, "sub": "\ud800"},
        {"channels": ["a"], "exp": NOW + 60, "rights": "subscribe"},
        {"channels": ["a"], "exp": NOW + 60, "rights": ["admin"]},
        {"channels": ["a"], "exp": NOW + 60, "nbf": "soon"},
        {"channels": ["a"], "exp": NOW + 60, "iat": NOW, "jti": 7},
        {"channels": ["a"], "exp": NOW + 60, "iat": NOW, "jti": "a b"},
        {"channels": ["a"], "exp": NOW + 60, "jti": "undated"},
        {"channels": ["a"], "exp": NOW + 31 * 86_400, "iat": NOW, "jti": "outlives-its-revocation"},
        {"channels": ["a"], "exp": NOW + 60, "info": 2**70},
        {"exp": NOW + 60},
        ["a"],
        "a",
    ],
)
def test_token_with_wrong_claims_is_refused(claims: Any) -> None:
    assert reason(by_hand(claims)) == "invalid_token"


def test_other_algorithms_are_refused() -> None:
    claims = {"channels": ["a"], "exp": NOW + 60}
    assert reason(by_hand(claims, header={"alg": "none", "typ": "JWT"})) == "invalid_token"
    assert reason(by_hand(claims, header={"alg": "HS512", "typ": "JWT"})) == "invalid_token"
    unsigned = by_hand(claims, header={"alg": "none"}).rpartition(".")[0] + "."
    assert reason(unsigned) == "invalid_token"


def of_size(size: int) -> str:
    """A token of so many characters, which expires a minute after NOW."""
    fixed = {"channels": ["a"], "exp": NOW + 60}
    found = next(token for pad in range(size) if len(token := by_hand({**fixed, "pad": "x" * pad})) >= size)
    assert len(found) == size
    return found


def test_largest_values_are_accepted() -> None:
    month = capabilities.MAX_LIFE_S
    assert capabilities.verify(of_size(4_096), (SECRET,), NOW)
    for claims in (
        {"channels": ["a"] * 100, "exp": NOW + 60},
        {"channels": ["a"], "exp": 253_402_300_800},
        {"channels": ["a"], "exp": NOW + month, "iat": NOW, "jti": "x" * 128},
    ):
        assert capabilities.verify(by_hand(claims), (SECRET,), NOW).channels
    assert reason(by_hand({"channels": ["a"], "exp": 253_402_300_801})) == "invalid_token"


def test_size_of_a_token_that_is_too_long_is_named() -> None:
    with pytest.raises(refusals.InvalidToken, match="The token has 4097 bytes; 4096 are allowed"):
        capabilities.verify("x" * 4_097, (SECRET,), NOW)


def test_signed_token_has_milliseconds_and_text_in_utf8() -> None:
    token = capabilities.sign(SECRET, capabilities.Capability((), NOW + 60, "日本", issued=NOW + 0.123456))
    payload = token.split(".")[1]
    text = base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)).decode()
    assert '"sub":"日本"' in text
    assert json.loads(text)["iat"] == NOW + 0.123


@pytest.mark.parametrize("token", ["", ".", "..", "a.b.c", "é.é.é", "x" * 4097, "e30.e30.e30"])
def test_text_that_is_not_a_token_is_refused(token: str) -> None:
    assert reason(token) == "invalid_token"


def test_changed_payload_is_refused() -> None:
    head, payload, signature = by_hand({"channels": ["a"], "exp": NOW + 60}).split(".")
    for index in range(0, len(payload), 7):
        changed = payload[:index] + ("A" if payload[index] != "A" else "B") + payload[index + 1 :]
        assert reason(f"{head}.{changed}.{signature}") == "invalid_token"


def test_rights_user_info_and_id_are_read_back() -> None:
    written = capabilities.Capability(
        ("presence-x",),
        NOW + 60,
        "42",
        NOW,
        frozenset(["subscribe", "presence"]),
        NOW,
        "5d41402abc4b",
        '{"name":"日本"}',
    )
    assert capabilities.verify(capabilities.sign(SECRET, written), (SECRET,), NOW) == written


def test_token_of_the_future_could_outlive_its_revocation_and_is_refused() -> None:
    latest = NOW + capabilities.MAX_AHEAD_S
    claims = {"channels": ["a"], "jti": "one", "iat": latest, "exp": latest + capabilities.MAX_LIFE_S}
    (record, _command) = revocations.publications("3", "one", expires=None, now=NOW)
    assert record.retention is not None
    assert NOW + record.retention.seconds >= capabilities.verify(by_hand(claims), (SECRET,), NOW).expires
    assert reason(by_hand({**claims, "iat": latest + 1})) == "early_token"


def test_early_and_expired_tokens_say_to_compare_the_clocks() -> None:
    for claims, reason_, text in (
        ({"exp": NOW - 5}, "expired_token", r"expired 5 s ago\..*compare the clock"),
        ({"exp": NOW + 60, "nbf": NOW + 5}, "early_token", r"before 5 s from now\..*compare the clock"),
    ):
        with pytest.raises(refusals.InvalidToken, match=text) as refused:
            capabilities.verify(by_hand({"channels": [], **claims}), (SECRET,), NOW)
        assert refused.value.reason == reason_


@pytest.mark.parametrize("auth", ["key:signature", "key:a.b.c", "", "a.b", "a.b.c.d"])
def test_signature_is_not_taken_for_a_token(auth: str) -> None:
    assert not capabilities.is_token(auth)
    assert capabilities.is_token(by_hand({}))
