from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fanfare.engine import interface
from fanfare.sse import cursors, errors

A, B = interface.Position("aZ3kP0Qx", 57), interface.Position("Bq9xT1Lm", 0)

positions = st.builds(
    interface.Position,
    st.text("0123456789abcXYZ", min_size=1, max_size=32),
    st.integers(0, 2**63 - 1),
)


def test_a_cursor_has_one_place_for_each_channel() -> None:
    assert cursors.text([A, None, B]) == "1.aZ3kP0Qx:57.-.Bq9xT1Lm:0"
    assert cursors.parse("1.aZ3kP0Qx:57.-.Bq9xT1Lm:0", 3) == (A, None, B)


@given(st.lists(st.none() | positions, min_size=1, max_size=16))
def test_what_was_written_is_read_back(places: list[interface.Position | None]) -> None:
    assert cursors.parse(cursors.text(places), len(places)) == tuple(places)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        "2.aZ3kP0Qx:57",
        "1.aZ3kP0Qx:57.-",
        "1.aZ3kP0Qx",
        "1.aZ3kP0Qx:",
        "1.:5",
        "1.aZ3kP0Qx:-1",
        "1.aZ3kP0Qx:05",
        "1.aZ3kP0Qx:5\n",
        "1.aZ3kP0Qx:\N{ARABIC-INDIC DIGIT FIVE}",
        "1.aZ3kP0Qx:9223372036854775808",
        "1." + "a" * 33 + ":1",
    ],
)
def test_another_releases_cursor_and_garbage_are_told_apart_from_a_place(text: str) -> None:
    with pytest.raises(errors.InvalidCursor):
        cursors.parse(text, 1)


@given(st.text(max_size=60), st.integers(1, 16))
def test_no_text_does_anything_but_be_read_or_refused(text: str, channels: int) -> None:
    with contextlib.suppress(errors.InvalidCursor):
        assert len(cursors.parse(text, channels)) == channels
