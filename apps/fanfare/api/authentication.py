"""Whether a request was signed with the application's secret, or, for a while after a rotation, with its last one.

Source: Pusher Channels REST API, "Authentication". The client sends `auth_key`, `auth_timestamp` (Unix seconds),
`auth_version`, `body_md5` (if there is a body) and `auth_signature`, the hexadecimal HMAC-SHA256 of three lines:

    METHOD
    path
    name=value&name=value…      all but auth_signature, names in lower case and sorted, values not escaped

The signature covers the body through its MD5, so `verify` needs no body: what is not signed is refused before a byte
of it is read, and `verify_body` follows when it is there.

Clients do not agree about what "not escaped" means, so every form that one of them signs is tried, the most frequent
first: the path and the values as they were sent or decoded, arrays as they were sent or joined by commas.
"""

from __future__ import annotations

import hashlib
import hmac
import operator
from collections.abc import Iterator
from urllib.parse import unquote

from fanfare.api import errors, query
from fanfare.applications import registry
from fanfare.protocol import signatures

TIMESTAMP_SECONDS = 600  # how far a client's clock may be from ours, either way: what Pusher enforces
TIMESTAMP_DIGITS = 12  # enough until the year 33658; int() of a longer text is work for nothing
SHOWN_CHARACTERS = 2_000  # of the signed string, in an answer

_NAME = operator.itemgetter(0)  # of a pair


def key(asked: query.Query) -> str:
    """The key that a request says it was signed for. Raises Unauthorized if it says none."""
    return _required(asked.authentication(), "auth_key")


def verify(application: registry.Application, method: str, path: str, asked: query.Query, now: float) -> str | None:
    """The body's MD5 that was signed with the request line, None if there was none.

    `path` is the one that was sent, not decoded; `now` is in Unix seconds. Raises Unauthorized with the reason.
    """
    given = asked.authentication()
    given_key = _required(given, "auth_key")
    timestamp = _required(given, "auth_timestamp")
    signature = _required(given, "auth_signature")
    if given_key != application.key:
        raise errors.Unauthorized(
            f"The auth_key {_shown(given_key)} is not the key of application {application.id}.", code="invalid_key"
        )
    version = given.get("auth_version", "1.0")
    if version != "1.0":
        raise errors.Unauthorized(f"The auth_version is {_shown(version)}, it must be 1.0.", code="invalid_version")
    _verify_timestamp(timestamp, now)

    first = ""
    secrets = application.secrets(now)
    for text in _signed_strings(method, path, asked):
        for secret in secrets:
            if signatures.matches(secret, text, signature):
                return given.get("body_md5")
        first = first or text
    raise errors.Unauthorized(
        f"Invalid signature: it must be the hexadecimal HMAC-SHA256, with the application's secret, of {_shown(first)}",
        code="invalid_signature",
    )


def verify_body(method: str, body_md5: str | None, body: bytes) -> None:
    """Raise Unauthorized unless `body` is the one that was signed.

    Some clients sign an empty body's MD5 with every GET, so there may be one without a body; it is then no more than a
    part of what was signed. But a POST that lost its body on the way is refused.
    """
    if not body and method != "POST":
        return
    if body_md5 is None:
        if body:
            raise errors.Unauthorized("The request has a body but no body_md5 parameter.", code="missing_body_md5")
        return
    digest = hashlib.md5(body, usedforsecurity=False).hexdigest()
    if not hmac.compare_digest(digest.encode(), body_md5.lower().encode()):
        raise errors.Unauthorized(
            f"The body_md5 is {_shown(body_md5)}, but the body of {len(body)} bytes has the MD5 {digest}.",
            code="invalid_body_md5",
        )


def _required(given: dict[str, str], name: str) -> str:
    value = given.get(name)
    if not value:
        raise errors.Unauthorized(f"The request is not signed: it has no {name} parameter.", code="missing_parameter")
    return value


def _verify_timestamp(timestamp: str, now: float) -> None:
    if not (timestamp.isascii() and timestamp.isdigit() and len(timestamp) <= TIMESTAMP_DIGITS):
        raise errors.Unauthorized(
            f"The auth_timestamp {_shown(timestamp)} is not a number of seconds since 1970.", code="invalid_timestamp"
        )
    distance = int(timestamp) - now
    if abs(distance) > TIMESTAMP_SECONDS:
        raise errors.Unauthorized(
            f"The auth_timestamp {timestamp} is {abs(distance):.0f} s {'ahead of' if distance > 0 else 'behind'} "
            f"the server's clock ({now:.0f}); the allowed maximum is {TIMESTAMP_SECONDS} s.",
            code="expired_timestamp",
        )


def _signed_strings(method: str, path: str, asked: query.Query) -> Iterator[str]:
    """The strings that a client may have signed, without repetition. An ordinary request has one."""
    paths = (unquote(path), path) if "%" in path else (path,)
    seen = set()
    for pairs in _signed_pairs(asked):
        ordered = sorted(pairs, key=_NAME)
        parameters = "&".join([f"{name}={value}" for name, value in ordered if name != "auth_signature"])
        if parameters not in seen:
            seen.add(parameters)
            for each in paths:
                yield f"{method}\n{each}\n{parameters}"


def _signed_pairs(asked: query.Query) -> Iterator[query.Pairs]:
    yield asked.decoded
    if asked.decoded is not asked.sent:
        yield asked.sent
        yield asked.percent_decoded
    if any("[" in name for name, _ in asked.decoded):
        yield _joined(asked.decoded)


def _joined(pairs: query.Pairs) -> query.Pairs:
    """`name[0]=a&name[1]=b` as `name=a,b`: how the PHP library signs an array, which it sends with brackets."""
    values: dict[str, list[str]] = {}
    for name, value in pairs:
        values.setdefault(name.partition("[")[0], []).append(value)
    return [(name, ",".join(items)) for name, items in values.items()]


def _shown(text: str) -> str:
    """Quoted, with line feeds as \\n, and not without end."""
    return repr(text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "…")
