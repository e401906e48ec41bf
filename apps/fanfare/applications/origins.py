"""Web origins: the lists that people write, and the check of a browser's `Origin` header against one.

An application has a list of origins whose pages may connect, FANFARE_CORS_ORIGINS one of origins whose pages may use
the auth endpoints. An entry is one of

    https://example.com, https://example.com:8443    this scheme, host and port (the scheme's own port if none is given)
    https://*.example.com                            the same for every subdomain, not for example.com itself
    capacitor://localhost                            an app of a phone, whose pages have a scheme of its own
    example.com, *.example.com                       any scheme, any port
    example.com:8443                                 any scheme, this port
    *                                                any origin, also `null`, that of files and sandboxed frames

A host may be written in any language: `https://müller.example` is the origin `https://xn--mller-kva.example`.

The check protects the users of browsers from pages of other people. A program can send any `Origin` header.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from typing import NamedTuple

ANY = "*"

_DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}
_ENTRY = re.compile(
    r"""
    (?: (?P<scheme> [a-z][a-z0-9+.-]* ) :// )?                        # https, http, and those of apps
    (?: (?P<ipv6> \[ [0-9a-f:.]+ \] )
      | (?P<star> \*\. )? (?P<name> [^\s/:@*\[\]?\#%.]+ (?: \. [^\s/:@*\[\]?\#%.]+ )* ) )   # a name or IPv4
    (?: : (?P<port> [0-9]{1,5} ) )?
    """,
    re.VERBOSE,
)


class Place(NamedTuple):
    """A parsed entry or origin. `scheme`: "" in an entry for any. `port`: None in an entry for any."""

    scheme: str
    host: str  # in ASCII; an IPv6 address in brackets, a wildcard as "*.example.com"
    port: int | None


def split(text: str) -> list[str]:
    """The entries of a text: one a line, or with commas or spaces between them; in lower case."""
    return text.replace(",", " ").lower().split()


def parse(text: str) -> tuple[str, ...]:
    """The entries in ASCII, each once; empty if any origin may connect."""
    entries = split(text)
    return () if ANY in entries else tuple(dict.fromkeys(map(ascii_form, entries)))


def faults(text: str) -> list[str]:
    """A sentence for each entry that can match no origin."""
    return [
        f"{entry!r} is not an origin: write https://example.com, example.com or *.example.com, without a path."
        for entry in split(text)
        if entry != ANY and place(entry) is None
    ]


def ascii_form(entry: str) -> str:
    """The entry as a browser writes the origin; one that cannot be read stays as it is."""
    found = place(entry)
    if found is None:
        return entry
    scheme = f"{found.scheme}://" if found.scheme else ""
    is_default = found.port is None or found.port == _DEFAULT_PORTS.get(found.scheme)
    return f"{scheme}{found.host}{'' if is_default else f':{found.port}'}"


def is_allowed(entries: Sequence[str], origin: str | None) -> bool:
    """Whether a page of `origin` may connect. Without entries any page may, and so may a program without an origin."""
    return not entries or not origin or matches(entries, origin)


def matches(entries: Sequence[str], origin: str | None) -> bool:
    """Whether one of the entries names this origin."""
    if not origin:
        return False
    if ANY in entries:
        return True
    asked = place(origin.lower())
    return asked is not None and asked.scheme != "" and any(_matches(entry, asked) for entry in entries)


def place(text: str) -> Place | None:
    """The parts of an entry or an origin; None if it is neither. `text`: in lower case."""
    found = _ENTRY.fullmatch(text)
    if found is None:
        return None
    scheme = found["scheme"] or ""
    port = int(found["port"]) if found["port"] else _DEFAULT_PORTS.get(scheme)
    if port is not None and port > 65_535:
        return None
    if found["ipv6"]:
        return _ipv6(scheme, found["ipv6"], port)
    name = found["name"] if found["name"].isascii() else _idna(found["name"])
    return None if name is None else Place(scheme, f"{found['star'] or ''}{name}", port)


def _ipv6(scheme: str, host: str, port: int | None) -> Place | None:
    """With the address in its short form, as browsers write it."""
    try:
        return Place(scheme, f"[{ipaddress.IPv6Address(host[1:-1]).compressed}]", port)
    except ValueError:
        return None


def _idna(name: str) -> str | None:
    """A host name in ASCII, as browsers encode it (UTS 46); None if it cannot be one."""
    import idna

    try:
        return idna.encode(name, uts46=True).decode()
    except idna.IDNAError:
        return None


def _matches(entry: str, asked: Place) -> bool:
    wanted = place(entry)
    if wanted is None:
        return False
    if wanted.scheme not in ("", asked.scheme) or wanted.port not in (None, asked.port):
        return False
    if wanted.host.startswith("*."):
        return asked.host.endswith(wanted.host[1:]) and len(asked.host) > len(wanted.host) - 1
    return asked.host == wanted.host
