"""Lists of allowed web origins, and the check of a browser's `Origin` header against them.

Each application has a list of the origins whose pages may connect. FANFARE_CORS_ORIGINS lists the origins whose pages
may use the auth endpoints. An entry is one of

    https://example.com, https://example.com:8443    this scheme, host and port (the scheme's own port if none is given)
    https://*.example.com                            the same for every subdomain, not for example.com itself
    capacitor://localhost                            a mobile app whose pages have their own scheme
    example.com, *.example.com                       any scheme, any port
    example.com:8443                                 any scheme, this port
    *                                                any origin, including `null` (files and sandboxed frames)

An internationalized host is converted: `https://müller.example` is the origin `https://xn--mller-kva.example`.

The check protects browser users from pages of other sites. A program can send any `Origin` header.
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
    (?: (?P<scheme> [a-z][a-z0-9+.-]* ) :// )?                        # https, http, or the scheme of an app
    (?: (?P<ipv6> \[ [0-9a-f:.]+ \] )
      | (?P<star> \*\. )? (?P<name> [^\s/:@*\[\]?\#%.]+ (?: \. [^\s/:@*\[\]?\#%.]+ )* ) )   # a name or IPv4
    (?: : (?P<port> [0-9]{1,5} ) )?
    """,
    re.VERBOSE,
)


class Origin(NamedTuple):
    """A parsed entry or origin. `scheme`: "" in an entry for any. `port`: None in an entry for any."""

    scheme: str
    host: str  # in ASCII; an IPv6 address in brackets, a wildcard as "*.example.com"
    port: int | None


def split(text: str) -> list[str]:
    """The entries of a text, separated by lines, commas or spaces; in lower case."""
    return text.replace(",", " ").lower().split()


def parse(text: str) -> tuple[str, ...]:
    """The entries in ASCII without duplicates; empty if any origin is allowed."""
    entries = split(text)
    return () if ANY in entries else tuple(dict.fromkeys(map(ascii_form, entries)))


def faults(text: str) -> list[str]:
    """An error message for each entry that cannot match an origin."""
    return [
        f"{entry!r} is not an origin: write https://example.com, example.com or *.example.com, without a path."
        for entry in split(text)
        if entry != ANY and parse_entry(entry) is None
    ]


def ascii_form(entry: str) -> str:
    """The entry as a browser writes the origin; an invalid entry is returned unchanged."""
    found = parse_entry(entry)
    if found is None:
        return entry
    scheme = f"{found.scheme}://" if found.scheme else ""
    is_default = found.port is None or found.port == _DEFAULT_PORTS.get(found.scheme)
    return f"{scheme}{found.host}{'' if is_default else f':{found.port}'}"


def is_allowed(entries: Sequence[str], origin: str | None) -> bool:
    """Whether a page of `origin` may connect. An empty list allows all pages; a client without an origin is allowed."""
    return not entries or not origin or matches(entries, origin)


def matches(entries: Sequence[str], origin: str | None) -> bool:
    """Whether an entry matches this origin."""
    if not origin:
        return False
    if ANY in entries:
        return True
    asked = parse_entry(origin.lower())
    return asked is not None and asked.scheme != "" and any(_matches(entry, asked) for entry in entries)


def parse_entry(text: str) -> Origin | None:
    """The parts of an entry or an origin; None if it is invalid. `text`: in lower case."""
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
    return None if name is None else Origin(scheme, f"{found['star'] or ''}{name}", port)


def _ipv6(scheme: str, host: str, port: int | None) -> Origin | None:
    """The address in its short form, as browsers write it."""
    try:
        return Origin(scheme, f"[{ipaddress.IPv6Address(host[1:-1]).compressed}]", port)
    except ValueError:
        return None


def _idna(name: str) -> str | None:
    """A host name in ASCII, as browsers encode it (UTS 46); None if it is invalid."""
    import idna

    try:
        return idna.encode(name, uts46=True).decode()
    except idna.IDNAError:
        return None


def _matches(entry: str, asked: Origin) -> bool:
    wanted = parse_entry(entry)
    if wanted is None:
        return False
    if wanted.scheme not in ("", asked.scheme) or wanted.port not in (None, asked.port):
        return False
    if wanted.host.startswith("*."):
        return asked.host.endswith(wanted.host[1:]) and len(asked.host) > len(wanted.host) - 1
    return asked.host == wanted.host
