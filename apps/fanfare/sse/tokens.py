"""Who may read a channel that is not public: a JSON Web Token that the application's server signs.

    {"channels": ["private-orders-*", "private-news"], "exp": 1789000000, "sub": "42"}

HS256 with the application's secret (RFC 7515, RFC 7519), so any JWT library of any language makes one. `channels` are
names in which `*` stands for any characters, also none. `exp` is required. `sub` is optional, and for people.

EventSource uses one URL for all its connections and sends no headers, so the signature of the WebSocket protocol, which
covers the socket id, cannot be used.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import jwt
from jwt import algorithms

from fanfare.sse import errors

ALGORITHM: Final = "HS256"
MAX_BYTES: Final = 4_096  # of a token: URLs of twice this size are refused by proxies
MAX_PATTERNS: Final = 100


class _Hs256(algorithms.HMACAlgorithm):
    """Secrets have 80 random bits, which nobody guesses; RFC 7518 §3.2 wants 256, and PyJWT would warn each time."""

    def check_key_length(self, key: bytes) -> str | None:
        return None


_jws = jwt.PyJWS(algorithms=[ALGORITHM])
_jws.unregister_algorithm(ALGORITHM)
_jws.register_algorithm(ALGORITHM, _Hs256(_Hs256.SHA256))


@dataclass(frozen=True, slots=True)
class Grant:
    """What a token allows, until `expires` (Unix time)."""

    channels: tuple[str, ...]
    expires: float
    user_id: str | None = None

    def covers(self, channel: str) -> bool:
        return any(_matches(pattern, channel) for pattern in self.channels)


def sign(secret: str, grant: Grant) -> str:
    claims: dict[str, Any] = {"channels": list(grant.channels), "exp": int(grant.expires)}
    if grant.user_id is not None:
        claims["sub"] = grant.user_id
    return _jws.encode(json.dumps(claims, separators=(",", ":")).encode(), secret, ALGORITHM, {"typ": "JWT"})


def verify(token: str, secrets: Sequence[str], now: float) -> Grant:
    """What `token` allows at `now` (Unix time). Raises Unauthorized."""
    if len(token) > MAX_BYTES:
        raise errors.Unauthorized("invalid_token", f"The token has {len(token)} bytes; {MAX_BYTES} are allowed.")
    grant = _grant(_payload(token, secrets))
    if grant.expires <= now:
        raise errors.Unauthorized("expired_token", f"The token expired {now - grant.expires:.0f} s ago.")
    return grant


def _payload(token: str, secrets: Sequence[str]) -> Any:
    for secret in secrets:
        try:
            return json.loads(_jws.decode(token, secret, algorithms=[ALGORITHM]))
        except jwt.InvalidSignatureError:
            continue
        except (jwt.InvalidTokenError, ValueError, RecursionError):
            break
    raise errors.Unauthorized(
        "invalid_token", f"This is no JSON Web Token that was signed with {ALGORITHM} and this application's secret."
    )


def _grant(claims: Any) -> Grant:
    if not isinstance(claims, dict):
        raise errors.Unauthorized("invalid_token", "The token's payload is not an object.")
    channels, expires, user_id = claims.get("channels"), claims.get("exp"), claims.get("sub")
    if not isinstance(channels, list) or not all(isinstance(one, str) for one in channels):
        raise errors.Unauthorized("invalid_token", "The token's claim `channels` is not a list of names.")
    if len(channels) > MAX_PATTERNS:
        raise errors.Unauthorized(
            "invalid_token", f"The token names {len(channels)} channels; {MAX_PATTERNS} are allowed."
        )
    if not isinstance(expires, int | float) or isinstance(expires, bool):
        raise errors.Unauthorized("invalid_token", "The token's claim `exp` is not a Unix time.")
    if user_id is not None and not isinstance(user_id, str):
        raise errors.Unauthorized("invalid_token", "The token's claim `sub` is not a string.")
    return Grant(tuple(channels), float(expires), user_id)


def _matches(pattern: str, channel: str) -> bool:
    """In time that grows with the channel's length only, however many stars there are: a regular expression's does
    not."""
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
