"""Validation of webhooks: the URL, the filters and the headers.

Each function returns an error message of one sentence, or None. No message contains the URL or a header's value: both
may contain a token.
"""

from __future__ import annotations

import re
from typing import Any
from urllib import parse

from fanfare.applications import registry
from fanfare.runtime import addresses

MOST_URL = 2_000  # characters; servers and proxies accept this length by default
MOST_HEADERS = 20
MOST_HEADER_VALUE = 4_096  # characters: enough for a signed token

SCHEMES = ("http", "https")

# Headers of the request itself and of its body. X-Pusher-… headers carry the signature.
RESERVED_HEADERS = frozenset(
    {
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "expect",
        "host",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
RESERVED_PREFIXES = ("proxy-", "x-pusher-")

_ASCII = re.compile(r"[!-~]+")
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\.?")
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")  # as the last label: the host is an IPv4 address
_PREFIX = re.compile(r"[-A-Za-z0-9_=@,.;#]+")  # the characters of channel names
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.1
_HEADER_VALUE = re.compile(r"[!-~](?:[\t -~]*[!-~])?")


def url_fault(url: str, *, allow_private: bool) -> str | None:
    """Checks a literal address in the URL. The addresses of a host name are checked at each delivery."""
    if not _ASCII.fullmatch(url):
        return "The URL has a space or a character outside ASCII; write it percent-encoded."
    try:
        parts = parse.urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        return f"The URL is invalid: {error}."
    checks = (
        (parts.scheme not in SCHEMES, "The URL must start with http:// or https://."),
        (
            parts.username is not None or parts.password is not None,
            "The URL has a user name or password; send them as an Authorization header instead.",
        ),
        (bool(parts.fragment), "The URL has a part after #, which is not sent."),
        (not host, "The URL has no host."),
        (port == 0, "The URL has port 0."),
    )
    fault = next((sentence for is_wrong, sentence in checks if is_wrong), None)
    return fault or _host_fault(host or "", allow_private=allow_private)


def masked(url: str) -> str:
    """The URL with the values of its query replaced, because they may be secrets: `https://example.com/hook?token=…`."""
    rest, question, query = url.partition("?")
    if not question:
        return url
    pairs = (pair.partition("=") for pair in query.split("&"))
    # A part without `=` may be a secret.
    return rest + "?" + "&".join(f"{name}=…" if equals else "…" for name, equals, _ in pairs)


def event_types_fault(value: Any) -> str | None:
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        return "The event types must be a list of strings."
    for entry in value:
        if entry not in registry.WEBHOOK_EVENTS:
            return f"There is no event type {entry!r}; the event types are {', '.join(registry.WEBHOOK_EVENTS)}."
    return None


def channel_prefix_fault(prefix: str) -> str | None:
    if prefix and not _PREFIX.fullmatch(prefix):
        return "The prefix has a character that channel names do not have: use letters, digits and _-=@,.;#."
    return None


def headers_fault(value: Any) -> str | None:
    if not isinstance(value, dict) or not all(isinstance(part, str) for pair in value.items() for part in pair):
        return "The headers must be an object whose values are strings."
    if len(value) > MOST_HEADERS:
        return f"There are {len(value)} headers; at most {MOST_HEADERS} are allowed."
    seen: set[str] = set()
    for name, text in value.items():
        fault = _header_fault(name, text)
        if fault:
            return fault
        if name.lower() in seen:
            return f"The header {name} appears twice."
        seen.add(name.lower())
    return None


def _host_fault(host: str, *, allow_private: bool) -> str | None:
    address = addresses.parse(host)
    if address is None:
        if not _HOST.fullmatch(host):
            return "The URL's host is not a valid host name."
        if _NUMBER.fullmatch(host.rstrip(".").rpartition(".")[2]):
            # Many resolvers accept `127.1`, `2130706433` and `0x7f.1` as the loopback address.
            return "The URL's host is neither a name nor an IPv4 address of four decimal numbers."
    is_local_name = host.rstrip(".").rpartition(".")[2] == "localhost"
    is_private = is_local_name if address is None else not addresses.is_public(address)
    if is_private and not allow_private:
        return (
            f"{host} is a private address; to allow webhooks to private addresses, set "
            "FANFARE_WEBHOOKS_ALLOW_PRIVATE=1."
        )
    return None


def _header_fault(name: str, text: str) -> str | None:
    if not _HEADER_NAME.fullmatch(name):
        return f"{name!r} is not a valid header name."
    if name.lower() in RESERVED_HEADERS or name.lower().startswith(RESERVED_PREFIXES):
        return f"The header {name} is set by the server."
    if len(text) > MOST_HEADER_VALUE:
        return f"The header {name} has {len(text)} characters; at most {MOST_HEADER_VALUE} are allowed."
    if not _HEADER_VALUE.fullmatch(text):
        return f"The header {name} must have a value of printable ASCII characters without surrounding spaces."
    return None
