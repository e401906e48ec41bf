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
        "https://müller.example",
        "*",
    ],
)
def test_origin_or_host_is_an_entry(entry: str) -> None:
    assert origins.faults(entry) == []


@pytest.mark.parametrize(
    "entry",
    [
        "https://",
        "https://example.com/",
        "example.com/path",
        "a.*.com",
        "*example.com",
        "a..b",
        "http://[::g]",
        "a:99999",
        "-ä-.com",
    ],
)
def test_entry_that_matches_no_origin_is_a_fault(entry: str) -> None:
    (fault,) = origins.faults(entry)
    assert repr(entry) in fault


def test_entries_are_separated_by_lines_or_commas_and_deduplicated() -> None:
    assert origins.parse("https://A.example\n\n b.example, https://a.example") == ("https://a.example", "b.example")


@pytest.mark.parametrize("text", ["", "\n", "*", "example.com\n*"])
def test_empty_list_and_star_mean_any_origin(text: str) -> None:
    assert origins.parse(text) == ()


@pytest.mark.parametrize(
    ("pattern", "allowed", "refused"),
    [
        (
            "https://example.com",
            ["https://example.com", "https://EXAMPLE.com", "https://example.com:443"],
            [
                "http://example.com",
                "https://example.com:8443",
                "https://a.example.com",
                "https://example.com.evil",
                "null",
            ],
        ),
        ("https://example.com:8443", ["https://example.com:8443"], ["https://example.com"]),
        (
            "https://*.example.com",
            ["https://a.example.com", "https://b.a.example.com"],
            ["https://example.com", "http://a.example.com", "https://aexample.com", "https://.example.com"],
        ),
        ("example.com", ["http://example.com", "https://example.com:8443"], ["http://a.example.com", "example.com"]),
        ("*.example.com", ["http://a.example.com:81"], ["http://example.com"]),
        ("example.com:8000", ["http://example.com:8000"], ["http://example.com"]),
        ("http://[::1]:8000", ["http://[::1]:8000"], ["http://[::1]"]),
        ("capacitor://localhost", ["capacitor://localhost"], ["http://localhost"]),
        ("http://[0:0::1]:8000", ["http://[::1]:8000"], []),
        ("https://müller.example", ["https://xn--mller-kva.example"], ["https://muller.example"]),
        ("https://*.straße.de", ["https://a.xn--strae-oqa.de"], ["https://a.strasse.de"]),
        ("*", ["https://anything.example", "null"], []),
    ],
)
def test_entry_matches_its_origins(pattern: str, allowed: list[str], refused: list[str]) -> None:
    assert [one for one in allowed if not origins.is_allowed([pattern], one)] == []
    assert [one for one in refused if origins.is_allowed([pattern], one)] == []


def test_empty_list_and_missing_origin_are_allowed() -> None:
    assert origins.is_allowed((), "https://anything.example")
    assert origins.is_allowed(("https://example.com",), None)


def test_matches_needs_an_entry_and_an_origin() -> None:
    """As for the auth endpoints, which are called with a visitor's session."""
    assert not origins.matches((), "https://anything.example")
    assert not origins.matches(("https://example.com",), None)
    assert origins.matches(("https://example.com",), "https://example.com")


@pytest.mark.parametrize(
    ("entry", "stored"),
    [
        ("HTTPS://Müller.example:443", "https://xn--mller-kva.example"),
        ("*.müller.example:8000", "*.xn--mller-kva.example:8000"),
        ("http://[0:0::1]", "http://[::1]"),
    ],
)
def test_entries_are_stored_as_browsers_write_them(entry: str, stored: str) -> None:
    assert origins.parse(entry) == (stored,)
