"""Tokens for channels that are not public: JSON Web Tokens that the application's server signs.

    {"channels": ["private-orders-*", "private-news"], "exp": 1789000000, "iat": 1788999400, "sub": "42"}

HS256 with the application's secret (RFC 7515, RFC 7519), so any JWT library makes one. `channels` are names in which
`*` matches any characters, or none. `exp` is required. `sub` is the user: when the application terminates that
user's connections, the stream ends, and tokens with an earlier `iat`, or without one, are refused.

EventSource uses one URL for all its connections and sends no headers, so the signature of the WebSocket protocol, which
covers the socket id, cannot be used.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import jwt
from jwt import algorithms

from fanfare.sse import refusals

ALGORITHM: Final = "HS256"
MAX_BYTES: Final = 4_096  # per token: proxies refuse URLs of twice this size
MAX_PATTERNS: Final = 100
LATEST: Final = 253_402_300_800  # Unix time: the end of the year 9999


class _Hs256(algorithms.HMACAlgorithm):
    """Secrets have 80 random bits, enough against guessing; RFC 7518 §3.2 asks for 256, and PyJWT would warn."""

    def check_key_length(self, key: bytes) -> str | None:
        return None


_jws = jwt.PyJWS(algorithms=[ALGORITHM])
_jws.unregister_algorithm(ALGORITHM)
_jws.register_algorithm(ALGORITHM, _Hs256(_Hs256.SHA256))


@dataclass(frozen=True, slots=True)
class Grant:
    """The contents of a token. `expires`, `issued`: Unix times; `issued` is None in a token without `iat`."""

    channels: tuple[str, ...]
    expires: float
    user_id: str | None = None
    issued: float | None = None

    def covers(self, channel: str) -> bool:
        return any(_matches(pattern, channel) for pattern in self.channels)


def sign(secret: str, grant: Grant) -> str:
    """A token, issued now unless the grant says otherwise."""
    issued = time.time() if grant.issued is None else grant.issued
    claims: dict[str, Any] = {"channels": list(grant.channels), "exp": int(grant.expires), "iat": round(issued, 3)}
    if grant.user_id is not None:
        claims["sub"] = grant.user_id
    return _jws.encode(json.dumps(claims, separators=(",", ":")).encode(), secret, ALGORITHM, {"typ": "JWT"})


def verify(token: str, secrets: Sequence[str], now: float) -> Grant:
    """The contents of a token that is valid at `now` (Unix time). Raises Unauthorized."""
    if len(token) > MAX_BYTES:
        raise refusals.Unauthorized("invalid_token", f"The token has {len(token)} bytes; {MAX_BYTES} are allowed.")
    grant = _grant(_payload(token, secrets))
    if grant.expires <= now:
        raise refusals.Unauthorized("expired_token", f"The token expired {now - grant.expires:.0f} s ago.")
    return grant


def _payload(token: str, secrets: Sequence[str]) -> Any:
    for secret in secrets:
        try:
            return json.loads(_jws.decode(token, secret, algorithms=[ALGORITHM]))
        except jwt.InvalidSignatureError:
            continue
        except (jwt.InvalidTokenError, ValueError, RecursionError):
            break
    raise refusals.Unauthorized(
        "invalid_token", f"This is not a JSON Web Token, signed with {ALGORITHM} and this application's secret."
    )


def _grant(claims: Any) -> Grant:
    if not isinstance(claims, dict):
        raise refusals.Unauthorized("invalid_token", "The token's payload is not an object.")
    channels, user_id = claims.get("channels"), claims.get("sub")
    if not isinstance(channels, list) or not all(isinstance(one, str) for one in channels):
        raise refusals.Unauthorized("invalid_token", "The token's claim `channels` is not a list of names.")
    if len(channels) > MAX_PATTERNS:
        raise refusals.Unauthorized(
            "invalid_token", f"The token names {len(channels)} channels; {MAX_PATTERNS} are allowed."
        )
    if user_id is not None and not isinstance(user_id, str):
        raise refusals.Unauthorized("invalid_token", "The token's claim `sub` is not a string.")
    issued = _time(claims, "iat") if "iat" in claims else None
    return Grant(tuple(channels), _time(claims, "exp"), user_id, issued)


def _time(claims: dict[str, Any], name: str) -> float:
    """A claim that is a Unix time. JSON parsers accept NaN, Infinity and integers of any length."""
    value = claims.get(name)
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LATEST and math.isfinite(value):
        return float(value)
    raise refusals.Unauthorized("invalid_token", f"The token's claim `{name}` is not a Unix time.")


def _matches(pattern: str, channel: str) -> bool:
    """The time grows with the channel's length only, not with the number of stars, as a regular expression's would."""
    first, *parts = pattern.split("*")
    if not parts:
        return channel == pattern
    *middle, last = parts
    if not channel.startswith(first):
        return False
    at = len(first)
    for part in middle:
        found = channel.find(part, at)
        if found < 0:
            return False
        at = found + len(part)
    return len(channel) - at >= len(last) and channel.endswith(last)
