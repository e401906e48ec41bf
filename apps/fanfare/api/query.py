"""A query string, kept in the two forms that a client may have signed: as it was sent, and decoded."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import unquote, unquote_plus

from fanfare.api import errors

Pairs = list[tuple[str, str]]

MAX_PARAMETERS = 256  # an array of 100 channels and room; anybody can make us sort them for a signature

AUTHENTICATION = frozenset({"auth_key", "auth_timestamp", "auth_version", "auth_signature", "body_md5"})
ARRAYS = frozenset({"channels"})  # a list even when the name came once and without brackets


class Query(NamedTuple):
    """`sent`: names in lower case, nothing decoded. `decoded`: the same list where there is no percent and no plus."""

    sent: Pairs
    decoded: Pairs

    @property
    def percent_decoded(self) -> Pairs:
        """Like `decoded`, but a plus stays a plus: some clients escape neither it nor a space."""
        return [(unquote(name), unquote(value)) for name, value in self.sent]

    def authentication(self) -> dict[str, str]:
        """The parameters that sign the request, by name. Raises Unauthorized if one is there twice."""
        found: dict[str, str] = {}
        for name, value in self.decoded:
            if name in AUTHENTICATION:
                if name in found:
                    raise errors.Unauthorized(f"The parameter {name} is there twice.", code="repeated_parameter")
                found[name] = value
        return found

    def arguments(self) -> dict[str, str | list[str]]:
        """All other parameters. `name[]=a&name[]=b` and `name[0]=a&name[1]=b` are lists; else the last value holds."""
        found: dict[str, str | list[str]] = {}
        for name, value in self.decoded:
            if name in AUTHENTICATION:
                continue
            base, bracket, _ = name.partition("[")
            if bracket or base in ARRAYS:
                items = found.get(base)
                if isinstance(items, list):
                    items.append(value)
                else:
                    found[base] = [value]
            else:
                found[name] = value
        return found


def parse(query_string: bytes) -> Query:
    """Raises Invalid for more parameters than any client sends."""
    text = query_string.decode("utf-8", "replace")
    if text.count("&") >= MAX_PARAMETERS:
        raise errors.Invalid(
            f"The query has {text.count('&') + 1} parameters, the allowed maximum is {MAX_PARAMETERS}.",
            code="too_many_parameters",
        )
    sent: Pairs = []
    for part in text.split("&"):
        if part:
            name, _, value = part.partition("=")
            sent.append((name.lower(), value))
    if "%" not in text and "+" not in text:
        return Query(sent, sent)
    return Query(sent, [(unquote_plus(name).lower(), unquote_plus(value)) for name, value in sent])
