from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fanfare.engine import interface
from fanfare.sse import cursors, refusals

A, B = interface.Position("aZ3kP0Qx", 57), interface.Position("Bq9xT1Lm", 0)

positions = st.builds(
    interface.Position,
    st.text("0123456789abcXYZ", min_size=1, max_size=64),
    st.integers(0, 10**18 - 1),
)


def test_cursor_has_one_position_for_each_channel() -> None:
    assert cursors.text([A, None, B]) == "1.aZ3kP0Qx:57.-.Bq9xT1Lm:0"
    assert cursors.parse("1.aZ3kP0Qx:57.-.Bq9xT1Lm:0", 3) == (A, None, B)


@given(st.lists(st.none() | positions, min_size=1, max_size=16))
def test_cursor_is_parsed_as_it_was_written(places: list[interface.Position | None]) -> None:
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
        "1." + "a" * 65 + ":1",
    ],
)
def test_cursor_of_another_version_or_form_is_invalid(text: str) -> None:
    with pytest.raises(refusals.InvalidCursor):
        cursors.parse(text, 1)


@given(st.text(max_size=60), st.integers(1, 16))
def test_any_text_is_parsed_or_refused(text: str, channels: int) -> None:
    with contextlib.suppress(refusals.InvalidCursor):
        assert len(cursors.parse(text, channels)) == channels
