"""The list of web origins that may connect to an application, as a person writes it.

An entry is an origin (`https://example.com`, `http://localhost:3000`), or a host with any scheme (`example.com`),
either with `*.` before the host for every name below it. `*` stands for any origin, as does an empty list.
"""

from __future__ import annotations

import re

ANY = "*"

_ENTRY = re.compile(
    r"""
    (?: [a-z][a-z0-9+.-]* :// )?                            # https, http, and those of apps: capacitor, ionic
    (?: \[ [0-9a-f:.]+ \]                                   # IPv6
      | (?: \*\. )? [a-z0-9_-]+ (?: \. [a-z0-9_-]+ )* )     # a name or IPv4
    (?: : [0-9]{1,5} )?
    """,
    re.VERBOSE,
)


def split(text: str) -> list[str]:
    """Entries of a text with one a line; commas and spaces separate too."""
    return text.replace(",", " ").lower().split()


def parse(text: str) -> tuple[str, ...]:
    """The entries in lower case, each once; empty where any origin may connect."""
    entries = tuple(dict.fromkeys(split(text)))
    return () if ANY in entries else entries


def faults(text: str) -> list[str]:
    """A sentence for each entry that can match no origin."""
    return [
        f"{entry!r} is not an origin: write https://example.com, example.com or *.example.com, without a path."
        for entry in split(text)
        if entry != ANY and not _ENTRY.fullmatch(entry)
    ]
