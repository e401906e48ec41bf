from __future__ import annotations

import pytest

from fanfare.applications import origins


@pytest.mark.parametrize(
    "entry",
    [
        "https://example.com",
        "http://localhost:3000",
        "example.com",
        "*.example.com",
        "https://*.example.com:8443",
        "capacitor://localhost",
        "127.0.0.1:8000",
        "http://[::1]:8000",
        "*",
    ],
)
def test_an_origin_or_a_host_is_an_entry(entry: str) -> None:
    assert origins.faults(entry) == []


@pytest.mark.parametrize(
    "entry", ["https://", "https://example.com/", "example.com/path", "a.*.com", "*example.com", "exämple.com", "a..b"]
)
def test_what_matches_no_origin_is_a_fault(entry: str) -> None:
    (fault,) = origins.faults(entry)
    assert repr(entry) in fault


def test_entries_stand_on_lines_or_between_commas_and_count_once() -> None:
    assert origins.parse("https://A.example\n\n b.example, https://a.example") == ("https://a.example", "b.example")


@pytest.mark.parametrize("text", ["", "\n", "*", "example.com\n*"])
def test_no_entry_and_a_star_both_mean_any_origin(text: str) -> None:
    assert origins.parse(text) == ()
