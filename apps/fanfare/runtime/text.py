"""Makes external text safe to store and to log.

A header, a redirect, an error message of a receiver or a user agent can contain anything: surrogates (Python's form of
bytes that are not UTF-8), which databases and UTF-8 logs refuse, NUL, which PostgreSQL refuses, line breaks that forge
log lines, and escape sequences for terminals.
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

    Bytes are read as UTF-8. Invalid and unprintable characters become `\\xNN` or `\\uNNNN`; text that was cut ends in
    `…`.
    """
    return _shorten(_UNSAFE.sub(_escape, _decode(value, longest)), longest)


def clean_lines(value: str | bytes, longest: int) -> str:
    """Like `clean` for several lines: tabs and line feeds stay; a carriage return before a line feed is removed."""
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
