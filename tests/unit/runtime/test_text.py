"""Text from outside becomes one printable line that every database and every log takes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fanfare.runtime import text


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("plain text", "plain text"),
        ("Grüße, 日本, 🎉", "Grüße, 日本, 🎉"),
        (b"caf\xc3\xa9 \xff", "café \\xff"),
        (b"\xff".decode("utf-8", "surrogateescape"), "\\xff"),
        ("\ud800", "\\ud800"),
        ("a\r\nforged line", "a\\x0d\\x0aforged line"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("nul\x00", "nul\\x00"),
        ("\u202eabc", "\\u202eabc"),
    ],
)
def test_unsafe_characters_are_escaped(value: str | bytes, expected: str) -> None:
    assert text.clean(value) == expected


def test_long_text_is_cut() -> None:
    assert text.clean("x" * 1_000, 10) == "x" * 9 + "…"
    assert text.clean("x" * 10, 10) == "x" * 10
    assert text.clean(b"\xf0\x9f\x8e\x89" * 1_000, 10) == "🎉" * 9 + "…"


def test_lines_of_a_text_of_several_lines_stay() -> None:
    assert text.clean_lines("one\r\n\ttwo\n\x00", 100) == "one\n\ttwo\n\\x00"


@given(st.one_of(st.binary(), st.text(st.characters(exclude_categories=()))), st.integers(1, 40))
def test_any_text_becomes_printable_and_short(value: str | bytes, longest: int) -> None:
    cleaned = text.clean(value, longest)
    assert len(cleaned) <= longest
    assert cleaned.encode().decode() == cleaned
    assert not set(cleaned) & {"\n", "\r", "\x00", "\x1b"}
