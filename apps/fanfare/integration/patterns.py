"""Channel patterns: `private-orders-{order_id:int}` becomes an anchored regular expression.

A parameter has one of four types:

    {name}        letters, digits and `_ = @ , . ;`: what a channel name may hold, without the dash
    {name:slug}   letters, digits, `_` and the dash
    {name:int}    a whole number as `str` writes it (no sign, no leading zero), at most 18 digits; given as int
    {name:uuid}   a UUID as `str` writes it (lower case, with dashes); given as UUID

Numbers and UUIDs match only in the one way that Python writes them, so that one object has one channel.

An encrypted channel fits only a pattern that begins with `private-encrypted-`: who lets visitors into channels with
wide names did not mean to hand out keys.

A name must be readable in one way only, or `private-{org}-{room}` would let the members of one organisation into the
room of another. So there is a dash between two parameters, and at most one parameter of a pattern is a slug.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from typing import Any, NamedTuple

from fanfare.integration import errors
from fanfare.protocol import names

GUARDED_PREFIXES = (names.PRIVATE_PREFIX, names.PRESENCE_PREFIX)  # nobody asks a rule about the other channels


class _Converter(NamedTuple):
    regex: str
    to_python: Callable[[str], Any]
    is_open: bool  # matches almost anything: gives way to a pattern with a narrower one


_CONVERTERS = {
    "": _Converter(r"[A-Za-z0-9_=@,.;]+", str, True),
    "slug": _Converter(r"[A-Za-z0-9_-]+", str, True),
    # 18 digits always fit a database's signed 64-bit integer; one more might not, and the query would fail
    "int": _Converter(r"(?:0|[1-9][0-9]{0,17})", int, False),
    "uuid": _Converter(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", uuid.UUID, False),
}
_PARAMETER = re.compile(r"\{([^{}]*)\}")
_LITERAL = re.compile(r"\A[-A-Za-z0-9_=@,.;]*\Z")


class Pattern:
    """A compiled pattern.

    `parameters`: the names, in order. `literals`: how many characters are not parameters. `open_parameters`: how many
    parameters match almost anything.
    """

    __slots__ = ("_converters", "_regex", "is_encrypted", "literals", "open_parameters", "parameters", "text")

    def __init__(self, text: str) -> None:
        """Raises InvalidPattern."""
        if not text.startswith(GUARDED_PREFIXES):
            raise errors.InvalidPattern(
                f"{text!r} starts with neither 'private-' nor 'presence-': everybody may join the other channels."
            )
        self.text = text
        self.is_encrypted = names.is_encrypted(text)
        self.literals = 0
        self._converters: dict[str, _Converter] = {}
        regex = []
        # split() with one group gives: literal, parameter, literal, parameter, …, literal
        parts = _PARAMETER.split(text)
        for index, part in enumerate(parts):
            if index % 2:
                regex.append(self._parameter(part))
                continue
            if not _LITERAL.match(part):
                raise errors.InvalidPattern(f"{text!r}: {part!r} cannot be part of a channel name.")
            if 0 < index < len(parts) - 1 and "-" not in part:
                raise errors.InvalidPattern(
                    f"{text!r}: two parameters need a '-' between them, so that a name is clear."
                )
            self.literals += len(part)
            regex.append(re.escape(part))
        if text.count(":slug}") > 1:
            raise errors.InvalidPattern(f"{text!r}: only one parameter can be a slug, so that a name is clear.")
        self._regex = re.compile(rf"\A{''.join(regex)}\Z")
        self.parameters = tuple(self._converters)
        self.open_parameters = sum(converter.is_open for converter in self._converters.values())

    def _parameter(self, part: str) -> str:
        name, _, kind = part.partition(":")
        if not name.isidentifier() or not name.isascii():
            raise errors.InvalidPattern(f"{self.text!r}: {name!r} is not a parameter name.")
        if name in self._converters:
            raise errors.InvalidPattern(f"{self.text!r} has the parameter {name!r} twice.")
        if kind not in _CONVERTERS:
            known = ", ".join(sorted(filter(None, _CONVERTERS)))
            raise errors.InvalidPattern(f"{self.text!r}: {kind!r} is no type; the types are {known}.")
        converter = self._converters[name] = _CONVERTERS[kind]
        return f"(?P<{name}>{converter.regex})"

    @property
    def shape(self) -> str:
        """The same for two patterns that match the same names whatever their parameters are called."""
        return re.sub(r"\(\?P<\w+>", "(", self._regex.pattern)

    def match(self, channel: str) -> dict[str, Any] | None:
        """The parameters' values, or None where the pattern does not fit."""
        found = self._regex.match(channel)
        if found is None or names.is_encrypted(channel) is not self.is_encrypted:
            return None
        return {name: self._converters[name].to_python(value) for name, value in found.groupdict().items()}
