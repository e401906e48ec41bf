"""Text from outside, made safe to store and to log.

A header, a redirect, the error message of a receiver or a user agent can hold anything: surrogates (Python's form of
bytes that are no UTF-8) that no database and no UTF-8 log takes, NUL that PostgreSQL refuses, line breaks that forge
log lines, escape sequences that a terminal obeys.
"""

from __future__ import annotations

import re

LONGEST = 500  # characters

# DEL and C1 controls, surrogates, the line separators of Unicode, and the marks that reorder the text around them.
_ALWAYS = "\x7f-\x9f\ud800-\udfff\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069"
_UNSAFE = re.compile(f"[\x00-\x1f{_ALWAYS}]")
_UNSAFE_IN_LINES = re.compile(f"[\x00-\x08\x0b-\x1f{_ALWAYS}]")  # all but tab and line feed


def clean(value: str | bytes, longest: int = LONGEST) -> str:
    """One printable line of at most `longest` characters.

    Bytes are read as UTF-8. What cannot be read or shown becomes `\\xNN` or `\\uNNNN`; text that was cut ends in `…`.
    """
    return _shorten(_UNSAFE.sub(_escape, _decode(value, longest)), longest)


def clean_lines(value: str | bytes, longest: int) -> str:
    """The same for a text that may have several lines: tabs and line feeds stay; a carriage return before one goes."""
    text = _decode(value, longest).replace("\r\n", "\n")
    return _shorten(_UNSAFE_IN_LINES.sub(_escape, text), longest)


def _decode(value: str | bytes, longest: int) -> str:
    # One more character than is kept, of four bytes at most: a long value costs no more than a short one.
    if isinstance(value, str):
        return value[: longest + 1]
    return value[: 4 * (longest + 1)].decode("utf-8", "backslashreplace")


def _escape(found: re.Match[str]) -> str:
    code = ord(found.group())
    if 0xDC80 <= code <= 0xDCFF:  # a byte that `surrogateescape` kept
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def _shorten(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"
