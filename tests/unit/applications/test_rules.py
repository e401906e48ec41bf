"""Which rule a channel has."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fanfare.applications import rules
from fanfare.engine import interface


def rule(pattern: str) -> rules.Rule:
    return rules.Rule(pattern, 10, 60)


def fits(pattern: str, channel: str) -> bool:
    return rules.Rules((rule(pattern),)).of(channel) is not None


@pytest.mark.parametrize(
    ("pattern", "channel", "expected"),
    [
        ("orders", "orders", True),
        ("orders", "orders-1", False),
        ("orders-*", "orders-", True),
        ("orders-*", "orders-1-2", True),
        ("orders-*", "private-orders-1", False),
        ("*-orders", "private-orders", True),
        ("a*b", "ab", True),
        ("a*b", "a", False),
        ("a*a", "a", False),
        ("*ab*ab*", "xabab", True),
        ("*ab*ab*", "xaba", False),
        ("**", "anything", True),
        ("a.c", "abc", False),
        ("*", "#server-to-user-7", True),
    ],
)
def test_star_matches_any_characters_and_no_other_character_is_special(
    pattern: str, channel: str, expected: bool
) -> None:
    assert fits(pattern, channel) is expected


@given(pattern=st.text("ab*", max_size=8), channel=st.text("ab", max_size=12))
def test_pattern_matches_as_a_backtracking_search_does(pattern: str, channel: str) -> None:
    naive = re.compile(".*".join(re.escape(part) for part in pattern.split("*")))
    assert fits(pattern, channel) is bool(naive.fullmatch(channel))


def test_match_is_fast_for_any_name() -> None:
    pattern = "a".join("*" * rules.MOST_STARS) + "b"
    assert rules.pattern_fault(pattern) is None
    started = time.process_time()
    assert not fits(pattern, "a" * 1_000)
    assert time.process_time() - started < 0.1  # giving up a place for a later one, it would take centuries


def test_first_matching_rule_applies() -> None:
    first, second, third = rule("orders-1"), rule("orders-*"), rule("*")
    known = rules.Rules((first, second, third))
    for _ in range(2):  # the second time it is remembered
        assert known.of("orders-1") is first
        assert known.of("orders-2") is second
        assert known.of("news") is third


def test_channel_without_a_rule_keeps_no_history() -> None:
    assert rules.Rules().of("news") is None
    assert not fits("orders-*", "news")


def test_cache_of_names_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "CACHED_NAMES", 10)
    known = rules.Rules((rule("orders-*"),))
    for number in range(100):
        assert known.of(f"orders-{number}") is not None
        assert len(known._known) <= 10


@pytest.mark.parametrize("pattern", ["", "a b", "a#b", "é", "a\n", "*" * (rules.MOST_STARS + 1)])
def test_pattern_that_matches_no_name_or_has_too_many_stars_is_refused(pattern: str) -> None:
    assert rules.pattern_fault(pattern)


@pytest.mark.parametrize("pattern", ["orders", "*", "#server-to-user-*", "private-a_b=c@d,e.f;g-*"])
def test_pattern_has_the_characters_of_names_and_stars(pattern: str) -> None:
    assert rules.pattern_fault(pattern) is None


def test_rules_with_equal_fields_are_equal() -> None:
    """So that a worker sees whether anything changed."""
    assert rules.Rules((rule("a"),)) == rules.Rules((rule("a"),))
    assert rules.Rules((rule("a"), rule("b"))) != rules.Rules((rule("b"), rule("a")))


def test_rule_gives_retention_and_recovery_bounds() -> None:
    whole = rules.Rule("*", 1_000, 60, 20, 30, max_replay_entries=500, max_replay_bytes=2_048)
    after = interface.Position("e", 7)
    assert whole.retention == interface.Retention(1_000, 60)
    assert whole.rewind == interface.Rewind(20, 30)
    assert whole.history(after) == interface.RecoveryRequest(after, None, 500, 2_048)
    assert rule("*").rewind is None
