from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from typing import Any

import jwt
import pytest

from fanfare.sse import errors, tokens

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
    with pytest.raises(errors.Unauthorized) as refused:
        tokens.verify(token, secrets or (SECRET,), NOW)
    assert len(token) < 10 or token not in str(refused.value)
    return refused.value.code


def test_what_is_signed_here_is_what_every_library_reads() -> None:
    """With a secret of RFC 7518's length, so that the library has nothing to say about it."""
    long = SECRET * 2
    token = tokens.sign(long, tokens.Grant(("private-a",), time.time() + 60, "42"))
    claims = jwt.decode(token, long, algorithms=["HS256"])
    assert (claims["channels"], claims["sub"]) == (["private-a"], "42")
    assert jwt.get_unverified_header(token) == {"alg": "HS256", "typ": "JWT"}


def test_what_is_made_by_hand_is_read_here() -> None:
    token = by_hand({"channels": ["private-orders-*"], "exp": NOW + 60, "sub": "42", "extra": 1})
    grant = tokens.verify(token, (SECRET,), NOW)
    assert grant == tokens.Grant(("private-orders-*",), NOW + 60, "42")


def test_a_star_stands_for_any_characters_and_nothing_else_does() -> None:
    grant = tokens.Grant(("private-orders-*", "private-a.b", "private-*-x"), NOW)
    for channel in ("private-orders-1", "private-orders-", "private-a.b", "private-1-x"):
        assert grant.covers(channel), channel
    for channel in ("private-orders", "xprivate-orders-1", "private-aXb", "private-a.bc", "private-x"):
        assert not grant.covers(channel), channel


def test_a_pattern_of_nothing_but_stars_is_looked_at_in_no_time() -> None:
    grant = tokens.Grant(("*a" * 30 + "*" * 100 + "b",), NOW)
    begun = time.perf_counter()
    assert not grant.covers("a" * 200)
    assert time.perf_counter() - begun < 1.0


def test_the_old_secret_is_good_while_it_is_given() -> None:
    token = by_hand({"channels": [], "exp": NOW + 1}, "old")
    assert tokens.verify(token, (SECRET, "old"), NOW).channels == ()
    assert reason(token, SECRET) == "invalid_token"


def test_an_expired_token_is_told_apart() -> None:
    assert reason(by_hand({"channels": ["a"], "exp": NOW})) == "expired_token"
    assert tokens.verify(by_hand({"channels": ["a"], "exp": NOW + 0.1}), (SECRET,), NOW)


@pytest.mark.parametrize(
    "claims",
    [
        {"channels": ["a"]},
        {"channels": ["a"], "exp": "soon"},
        {"channels": ["a"], "exp": True},
        {"channels": "a", "exp": NOW + 60},
        {"channels": [1], "exp": NOW + 60},
        {"channels": ["a"] * 101, "exp": NOW + 60},
        {"channels": ["a"], "exp": NOW + 60, "sub": 42},
        {"exp": NOW + 60},
        ["a"],
        "a",
    ],
)
def test_a_token_that_says_something_else_is_refused(claims: Any) -> None:
    assert reason(by_hand(claims)) == "invalid_token"


def test_only_our_algorithm_is_believed() -> None:
    claims = {"channels": ["a"], "exp": NOW + 60}
    assert reason(by_hand(claims, header={"alg": "none", "typ": "JWT"})) == "invalid_token"
    assert reason(by_hand(claims, header={"alg": "HS512", "typ": "JWT"})) == "invalid_token"
    unsigned = by_hand(claims, header={"alg": "none"}).rpartition(".")[0] + "."
    assert reason(unsigned) == "invalid_token"


@pytest.mark.parametrize("token", ["", ".", "..", "a.b.c", "é.é.é", "x" * 4097, "e30.e30.e30"])
def test_garbage_is_refused(token: str) -> None:
    assert reason(token) == "invalid_token"


def test_one_changed_letter_is_noticed() -> None:
    head, payload, signature = by_hand({"channels": ["a"], "exp": NOW + 60}).split(".")
    for index in range(0, len(payload), 7):
        changed = payload[:index] + ("A" if payload[index] != "A" else "B") + payload[index + 1 :]
        assert reason(f"{head}.{changed}.{signature}") == "invalid_token"
