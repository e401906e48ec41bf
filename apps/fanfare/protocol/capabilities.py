"""Capability tokens: JSON Web Tokens that let their bearer use channels, over WebSocket and SSE.

    {"channels": ["private-orders-*", "presence-room-7"], "rights": ["subscribe", "publish", "presence"],
     "exp": 1789000000, "nbf": 1788999400, "iat": 1788999400, "sub": "42", "info": {"name": "Ann"}, "jti": "5d41…"}

HS256 with the application's secret (RFC 7515, RFC 7519), so any JWT library makes one; a token with another algorithm
is refused. Only `channels` and `exp` are required.

| claim      | meaning                                                                                               |
|------------|-------------------------------------------------------------------------------------------------------|
| `channels` | names in which `*` stands for any characters, or none                                                 |
| `rights`   | see RIGHTS; without it `subscribe` and `history`                                                      |
| `exp`      | Unix time at which the token, and what was begun with it, ends                                        |
| `nbf`      | Unix time before which the token is refused                                                           |
| `iat`      | Unix time of issue, not in the future; needed beside `jti`, and by `sub` to outlive a termination     |
| `sub`      | the user: the token ends when the application terminates that user's connections                      |
| `info`     | of the user, as a member of a presence channel                                                        |
| `jti`      | the token's id, with which it is revoked (`fanfare.protocol.revocations`)                             |

An EventSource uses one URL for all its connections and sends no headers, so the signature of the WebSocket protocol,
which covers the socket id, cannot be used there. A token is not bound to a connection: a program that reads it can use
it until it ends.
"""

from __future__ import annotations

import functools
import json
import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from fanfare.protocol import refusals

ALGORITHM: Final = "HS256"
MAX_BYTES: Final = 4_096  # per token: proxies refuse URLs of twice this size
MAX_PATTERNS: Final = 100
MAX_LIFE_S: Final = 30 * 86_400  # of a token with `jti`: a revocation is remembered for as long
MAX_AHEAD_S: Final = 300  # of `iat`: the difference of two clocks
LATEST: Final = 253_402_300_800  # Unix time: the end of the year 9999

SUBSCRIBE: Final = "subscribe"
PUBLISH: Final = "publish"
PRESENCE: Final = "presence"
HISTORY: Final = "history"
RIGHTS: Final = {
    SUBSCRIBE: "subscribe to the channels",
    PUBLISH: "send client events, if the application allows them, and cancel streams",
    PRESENCE: "join presence channels as the user in `sub`, with `info`",
    HISTORY: "read kept events: rewind, resume, and pages of history",
}
DEFAULT_RIGHTS: Final = frozenset([SUBSCRIBE, HISTORY])

TOKEN_ID: Final = re.compile(r"\A[A-Za-z0-9_.:~-]{1,128}\Z")

# The difference of two clocks is the usual reason for a token that is refused right after it was issued.
_CLOCKS: Final = "If it was issued just now, compare the clock of the server that issued it with this one's"


@functools.cache
def _jws() -> Any:
    """PyJWT, at its first use: it takes 3.7 MB of a worker's memory."""
    import jwt
    from jwt import algorithms

    class Hs256(algorithms.HMACAlgorithm):
        """Secrets have 80 random bits, enough against guessing; RFC 7518 §3.2 asks for 256, and PyJWT would warn."""

        def check_key_length(self, key: bytes) -> str | None:
            return None

    jws = jwt.PyJWS(algorithms=[ALGORITHM])
    jws.unregister_algorithm(ALGORITHM)
    jws.register_algorithm(ALGORITHM, Hs256(Hs256.SHA256))
    return jws


@dataclass(frozen=True, slots=True)
class Capability:
    """The contents of a token. `expires`, `issued`, `not_before`: Unix times. `info`: JSON text."""

    channels: tuple[str, ...]
    expires: float
    user_id: str | None = None
    issued: float | None = None
    rights: frozenset[str] = DEFAULT_RIGHTS
    not_before: float | None = None
    token_id: str | None = None
    info: str = "null"

    def covers(self, channel: str) -> bool:
        return any(_matches(pattern, channel) for pattern in self.channels)


def is_token(auth: str) -> bool:
    """Whether the `auth` of a subscribe is a token; a signature has the form KEY:SIGNATURE."""
    return auth.count(".") == 2 and ":" not in auth


def sign(secret: str, capability: Capability) -> str:
    """A token, issued now unless the capability says otherwise."""
    issued = time.time() if capability.issued is None else capability.issued
    claims: dict[str, Any] = {
        "channels": list(capability.channels),
        "exp": int(capability.expires),
        "iat": round(issued, 3),
    }
    if capability.rights != DEFAULT_RIGHTS:
        claims["rights"] = sorted(capability.rights)
    if capability.user_id is not None:
        claims["sub"] = capability.user_id
    if capability.info != "null":
        claims["info"] = json.loads(capability.info)
    if capability.not_before is not None:
        claims["nbf"] = capability.not_before
    if capability.token_id is not None:
        claims["jti"] = capability.token_id
    payload = json.dumps(claims, separators=(",", ":"), ensure_ascii=False).encode()
    token: str = _jws().encode(payload, secret, ALGORITHM, {"typ": "JWT"})
    return token


def verify(token: str, secrets: Sequence[str], now: float) -> Capability:
    """The contents of a token that is valid at `now` (Unix time). Raises InvalidToken."""
    if len(token) > MAX_BYTES:
        raise refusals.InvalidToken(f"The token has {len(token)} bytes; {MAX_BYTES} are allowed.")
    capability = _capability(_payload(token, secrets))
    if capability.expires <= now:
        raise refusals.InvalidToken(
            f"The token expired {now - capability.expires:.0f} s ago. {_CLOCKS}.", reason="expired_token"
        )
    if capability.not_before is not None and capability.not_before > now:
        raise refusals.InvalidToken(
            f"The token is not valid before {capability.not_before - now:.0f} s from now. {_CLOCKS}.",
            reason="early_token",
        )
    if capability.issued is not None and capability.issued > now + MAX_AHEAD_S:
        # It would outlive its revocation, and a termination of its user.
        raise refusals.InvalidToken(
            f"The token's `iat` is {capability.issued - now:.0f} s ahead; {MAX_AHEAD_S} are allowed. {_CLOCKS}.",
            reason="early_token",
        )
    return capability


def _payload(token: str, secrets: Sequence[str]) -> Any:
    import jwt

    for secret in secrets:
        try:
            return json.loads(_jws().decode(token, secret, algorithms=[ALGORITHM]))
        except jwt.InvalidSignatureError:
            continue
        except (jwt.InvalidTokenError, ValueError, RecursionError):
            break
    raise refusals.InvalidToken(f"This is not a JSON Web Token, signed with {ALGORITHM} and this application's secret.")


def _capability(claims: Any) -> Capability:
    if not isinstance(claims, dict):
        raise refusals.InvalidToken("The token's payload is not an object.")
    channels, user_id, token_id = claims.get("channels"), claims.get("sub"), claims.get("jti")
    if not isinstance(channels, list) or not all(isinstance(one, str) for one in channels):
        raise refusals.InvalidToken("The token's claim `channels` is not a list of names.")
    if len(channels) > MAX_PATTERNS:
        raise refusals.InvalidToken(f"The token names {len(channels)} channels; {MAX_PATTERNS} are allowed.")
    if user_id is not None and not _is_text(user_id):
        raise refusals.InvalidToken("The token's claim `sub` is not a string without NUL and lone surrogates.")
    expires = _time(claims, "exp")
    issued = _time(claims, "iat") if "iat" in claims else None
    if token_id is not None:
        _check_token_id(token_id, issued, expires)
    return Capability(
        tuple(channels),
        expires,
        user_id,
        issued,
        _rights(claims.get("rights")),
        _time(claims, "nbf") if "nbf" in claims else None,
        token_id,
        _info(claims.get("info")),
    )


def _is_text(value: Any) -> bool:
    """Whether the engines can store it: PostgreSQL stores no NUL, and a lone surrogate has no UTF-8 form."""
    return isinstance(value, str) and "\0" not in value and not any("\ud800" <= one <= "\udfff" for one in value)


def _check_token_id(token_id: Any, issued: float | None, expires: float) -> None:
    """A revocation must outlive the token."""
    if not isinstance(token_id, str) or TOKEN_ID.match(token_id) is None:
        raise refusals.InvalidToken(
            "The token's claim `jti` is not a string of 1 to 128 letters, digits and the characters `_.:~-`."
        )
    if issued is None or expires - issued > MAX_LIFE_S:
        raise refusals.InvalidToken(
            f"A token with the claim `jti` also has `iat`, and its `exp` is at most {MAX_LIFE_S} s later."
        )


def _rights(value: Any) -> frozenset[str]:
    if value is None:
        return DEFAULT_RIGHTS
    if not isinstance(value, list) or not all(isinstance(one, str) and one in RIGHTS for one in value):
        raise refusals.InvalidToken(f"The token's claim `rights` is not a list of {', '.join(RIGHTS)}.")
    return frozenset(value)


def _info(value: Any) -> str:
    try:
        return orjson.dumps(value).decode()
    except orjson.JSONEncodeError:  # nested too deeply, an integer over 64 bits, or a lone surrogate
        raise refusals.InvalidToken("The token's claim `info` cannot be sent as JSON.") from None


def _time(claims: dict[str, Any], name: str) -> float:
    """A claim that is a Unix time. JSON parsers accept NaN, Infinity and integers of any length."""
    value = claims.get(name)
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LATEST and math.isfinite(value):
        return float(value)
    raise refusals.InvalidToken(f"The token's claim `{name}` is not a Unix time.")


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
