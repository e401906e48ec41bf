"""Verifies that a request was signed with the application's secret, or during a rotation with the previous one.

Source: Pusher Channels REST API, "Authentication". The client sends `auth_key`, `auth_timestamp` (Unix seconds),
`auth_version`, `body_md5` (if there is a body) and `auth_signature`, the hexadecimal HMAC-SHA256 of three lines:

    METHOD
    path
    name=value&name=value…      all but auth_signature, names in lower case and sorted, values not escaped

The signature covers the body through its MD5, so `verify` runs before the body is read, and `verify_body` after it.

Client libraries interpret "not escaped" differently, so `verify` tries each form that one of them signs, the most
frequent first: the path and the values as sent or decoded, arrays as sent or joined by commas.
"""

from __future__ import annotations

import hashlib
import hmac
import operator
import re
from collections.abc import Iterator, Sequence
from urllib.parse import unquote

from fanfare.api import refusals, requests
from fanfare.applications import registry
from fanfare.protocol import signatures

TIMESTAMP_SECONDS = 600  # the largest difference between the clocks of client and server, as with Pusher
TIMESTAMP_DIGITS = 12  # enough until the year 33658
SHOWN_CHARACTERS = 2_000  # of the signed string, in an answer

# As most client libraries send it: sorted, with the signature at the end.
_SORTED = re.compile(
    rf"auth_key=([^&=%+]+)&auth_timestamp=([0-9]{{1,{TIMESTAMP_DIGITS}}})&auth_version=1\.0&body_md5=([0-9A-Za-z]+)"
    r"&auth_signature=([0-9A-Za-z]+)",
    re.ASCII,
)
_NAME = operator.itemgetter(0)  # of a pair


def key(query: requests.Query) -> str:
    """The request's `auth_key`. Raises Unauthorized if it is missing."""
    return _required(query.authentication(), "auth_key")


def verify(
    application: registry.Application, method: str, paths: Sequence[str], query: requests.Query, now: float
) -> str | None:
    """Verify the signature. Returns the signed MD5 of the body, None if the request has none.

    `paths`: the path as it was sent, not decoded, in each form that a proxy may have changed it to; `now` in Unix
    seconds. Raises Unauthorized with the reason.
    """
    given = query.authentication()
    given_key = _required(given, "auth_key")
    timestamp = _required(given, "auth_timestamp")
    signature = _required(given, "auth_signature")
    if given_key != application.key:
        raise refusals.Unauthorized(
            f"The auth_key {_shown(given_key)} is not the key of application {application.id}.", code="invalid_key"
        )
    version = given.get("auth_version", "1.0")
    if version != "1.0":
        raise refusals.Unauthorized(f"The auth_version is {_shown(version)}, it must be 1.0.", code="invalid_version")
    _verify_timestamp(timestamp, now)

    first = ""
    secrets = application.secrets(now)
    for text in _signed_strings(method, paths, query):
        for secret in secrets:
            if signatures.matches(secret, text, signature):
                return given.get("body_md5")
        first = first or text
    raise refusals.Unauthorized(
        f"Invalid signature: it must be the hexadecimal HMAC-SHA256, with the application's secret, of {_shown(first)}",
        code="invalid_signature",
    )


def verify_plain(application: registry.Application, path: str, query: str, now: float) -> str | None:
    """Verify a POST request with exactly the five parameters of a signature, none of them escaped, as client libraries
    send it. Returns the signed MD5 of the body; None for any other request, valid or not: `verify` decides.
    """
    found = _SORTED.fullmatch(query)
    given = _unsorted(query) if found is None else found.groups()
    if given is None:
        return None
    key, timestamp, body_md5, signature = given
    if key != application.key or abs(int(timestamp) - now) > TIMESTAMP_SECONDS:
        return None
    text = f"POST\n{path}\nauth_key={key}&auth_timestamp={timestamp}&auth_version=1.0&body_md5={body_md5}"
    for secret in application.secrets(now):
        if signatures.matches(secret, text, signature):
            return body_md5
    return None


def _unsorted(query: str) -> tuple[str, ...] | None:
    """The groups of `_SORTED` for the same parameters in another order."""
    pairs = sorted(query.split("&"))
    if len(pairs) != len(requests.AUTHENTICATION):
        return None
    key, signature, timestamp, version, body_md5 = pairs
    found = _SORTED.fullmatch(f"{key}&{timestamp}&{version}&{body_md5}&{signature}")
    return None if found is None else found.groups()


def verify_body(method: str, body_md5: str | None, body: bytes) -> None:
    """Raise Unauthorized unless `body` has the signed MD5.

    Some clients sign the MD5 of an empty body with every GET, so a GET may have a `body_md5` and no body. A POST whose
    body was lost is refused.
    """
    if not body and method != "POST":
        return
    if body_md5 is None:
        if body:
            raise refusals.Unauthorized("The request has a body but no body_md5 parameter.", code="missing_body_md5")
        return
    digest = hashlib.md5(body, usedforsecurity=False).hexdigest()
    if not hmac.compare_digest(digest.encode(), body_md5.lower().encode()):
        raise refusals.Unauthorized(
            f"The body_md5 is {_shown(body_md5)}, but the body of {len(body)} bytes has the MD5 {digest}.",
            code="invalid_body_md5",
        )


def _required(given: dict[str, str], name: str) -> str:
    value = given.get(name)
    if not value:
        raise refusals.Unauthorized(f"The request is not signed: it has no {name} parameter.", code="missing_parameter")
    return value


def _verify_timestamp(timestamp: str, now: float) -> None:
    if not (timestamp.isascii() and timestamp.isdigit() and len(timestamp) <= TIMESTAMP_DIGITS):
        raise refusals.Unauthorized(
            f"The auth_timestamp {_shown(timestamp)} is not a number of seconds since 1970.", code="invalid_timestamp"
        )
    distance = int(timestamp) - now
    if abs(distance) > TIMESTAMP_SECONDS:
        raise refusals.Unauthorized(
            f"The auth_timestamp {timestamp} is {abs(distance):.0f} s {'ahead of' if distance > 0 else 'behind'} "
            f"the server's clock ({now:.0f}); the allowed maximum is {TIMESTAMP_SECONDS} s.",
            code="expired_timestamp",
        )


def _signed_strings(method: str, paths: Sequence[str], query: requests.Query) -> Iterator[str]:
    """The strings that a client may have signed, without duplicates. A request without escapes has one."""
    spellings = [each for path in paths for each in ((unquote(path), path) if "%" in path else (path,))]
    seen = set()
    for pairs in _signed_pairs(query):
        ordered = sorted(pairs, key=_NAME)
        parameters = "&".join([f"{name}={value}" for name, value in ordered if name != "auth_signature"])
        if parameters not in seen:
            seen.add(parameters)
            for each in spellings:
                yield f"{method}\n{each}\n{parameters}"


def _signed_pairs(query: requests.Query) -> Iterator[requests.Pairs]:
    yield query.decoded
    if query.decoded is not query.sent:
        yield query.sent
        yield query.percent_decoded
    if any("[" in name for name, _ in query.decoded):
        yield _joined(query.decoded)


def _joined(pairs: requests.Pairs) -> requests.Pairs:
    """`name[0]=a&name[1]=b` as `name=a,b`: the PHP library signs arrays in this form and sends them with brackets."""
    values: dict[str, list[str]] = {}
    for name, value in pairs:
        values.setdefault(name.partition("[")[0], []).append(value)
    return [(name, ",".join(items)) for name, items in values.items()]


def _shown(text: str) -> str:
    """Quoted, with line feeds as \\n, cut to SHOWN_CHARACTERS."""
    return repr(text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "…")
