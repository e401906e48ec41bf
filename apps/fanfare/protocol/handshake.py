"""Checks of the WebSocket handshake: URL and headers, before a connection exists.

    ws[s]://HOST[PREFIX]/app/KEY?protocol=7&client=js&version=8.6.0

Source: Pusher Channels protocol 7, "WebSocket connection". The HTTP upgrade itself is always accepted: a browser's
script sees only 1006 for a refused upgrade, and pusher-js would retry forever. So a refusal is a `pusher:error` and a
close code.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping
from typing import Final, NamedTuple
from urllib.parse import parse_qsl

from fanfare.applications import origins, registry
from fanfare.protocol import refusals
from fanfare.runtime import close_codes

# `wsPath` of pusher-js and `path` of Swift put any prefix before /app/.
_PATH: Final = re.compile(r"\A(?P<prefix>.*)/app/(?P<key>[^/]+)\Z", re.DOTALL)
# The end of the prefix of a page with a resume token. It grants no access, but with it another client could disturb the
# page, so it is long and not logged.
_TOKEN: Final = re.compile(r"(?:\A|/)s/(?P<token>[A-Za-z0-9_-]{16,128})\Z")
_VERSION: Final = re.compile(r"\A[0-9]+\Z")

PROTOCOLS: Final = ("4", "5", "6", "7")  # earlier versions differ in channel authorization and presence
CLIENT_CHARACTERS: Final = 40  # of the client's name and version, which are kept with the connection
CACHED_QUERIES, CACHED_BYTES = 64, 256  # all clients of an application send the same short query
SOCKET_ID_BYTES: Final = 16  # of randomness
SOCKET_ID_RANGE: Final = 10**10  # of each half: below 2**53, so exact in every client; together they cannot be guessed


class Client(NamedTuple):
    """Data of a client, for the console."""

    name: str  # "js"; "" if not sent
    version: str  # "8.6.0"; "" if not sent
    prefix: str  # of the path, usually ""
    address: str  # of the peer, or of the client behind a trusted proxy


class Handshake(NamedTuple):
    """`token`: of a page that wants to resume. `with_offsets`: the client requests offsets of events. `origin`: "" if
    the client sent none."""

    application: registry.Application
    client: Client
    token: str | None
    with_offsets: bool
    origin: str


def accept(
    applications: registry.Registry, *, path: str, query: bytes, origin: str | None, address: str = ""
) -> Handshake:
    """The application and the client of a handshake. `path` is decoded. Raises ConnectionRefused."""
    match = _PATH.match(path)
    if match is None:
        raise refusals.ConnectionRefused(
            refusals.UNKNOWN_PATH,
            f'There is nothing at "{refusals.quoted(path)}": the path of a client ends in /app/KEY',
        )
    key = match["key"]
    application = applications.by_key(key)
    if application is None:
        raise refusals.ConnectionRefused(
            close_codes.UNKNOWN_APPLICATION, f"App key {refusals.quoted(key, 40)} does not exist on this server"
        )
    if not application.enabled:
        if applications.suspended_s(application.id):
            raise refusals.ApplicationSuspended(application.id)
        raise refusals.ConnectionRefused(close_codes.APPLICATION_DISABLED, "This application is disabled")
    parameters = _parameters(query) if len(query) > CACHED_BYTES else _cached_parameters(query)
    _check_protocol(parameters.get("protocol", ""))
    if not origins.is_allowed(application.allowed_origins, origin):
        raise refusals.ConnectionRefused(
            refusals.UNAUTHORIZED, f'The origin "{refusals.quoted(origin or "")}" is not allowed for this application'
        )
    name, version = parameters.get("client", "")[:CLIENT_CHARACTERS], parameters.get("version", "")[:CLIENT_CHARACTERS]
    found = _TOKEN.search(match["prefix"])
    prefix = match["prefix"] if found is None else match["prefix"][: found.start("token")] + "…"
    return Handshake(
        application,
        Client(name, version, prefix, address),
        found["token"] if found is not None else None,
        parameters.get("rt") == "1",
        origin or "",
    )


def new_socket_id() -> str:
    """With a socket id, a publisher can exclude the socket from events, so it must not be guessable."""
    # One call of the system. The remainder favours small numbers by less than 2**-60.
    one, other = divmod(int.from_bytes(os.urandom(SOCKET_ID_BYTES)) % SOCKET_ID_RANGE**2, SOCKET_ID_RANGE)
    return f"{one}.{other}"


def _parameters(query: bytes) -> Mapping[str, str]:
    """The first value of each parameter."""
    parameters: dict[str, str] = {}
    for name, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        parameters.setdefault(name, value)
    return parameters


_cached_parameters = functools.lru_cache(CACHED_QUERIES)(_parameters)


def _check_protocol(version: str) -> None:
    """Raise ConnectionRefused for another version. All of PROTOCOLS are treated the same; the default is 7."""
    if not version:
        return
    if _VERSION.match(version) is None:
        raise refusals.ConnectionRefused(
            refusals.INVALID_VERSION, f'Invalid protocol version "{refusals.quoted(version, 40)}": a number is expected'
        )
    if version.lstrip("0") not in PROTOCOLS:  # as text: int() refuses thousands of digits
        raise refusals.ConnectionRefused(
            refusals.UNSUPPORTED_PROTOCOL,
            f"Protocol version {refusals.quoted(version, 40)} is not supported: "
            f"this server speaks {PROTOCOLS[0]} to {PROTOCOLS[-1]}",
        )
