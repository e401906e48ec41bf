"""Which channels keep a history, and how much of it is given back: by patterns of their names.

A rule is switched on for a pattern; channels that no rule matches keep nothing, and cost nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from fanfare.engine import interface

# Names are chosen by clients: what was looked up is remembered, but not without a bound.
REMEMBERED = 10_000

MOST_STARS = 10  # in one pattern; each costs a search through the name

# What channel names are made of, and the star. Those of the server begin with #.
_PATTERN = re.compile(r"#?[-A-Za-z0-9_=@,.;*]+")


@dataclass(frozen=True, slots=True)
class Rule:
    """`pattern`: a channel's name, in which `*` stands for any characters, also none. The first rule that fits holds.

    `history_size` entries are kept, none older than `history_seconds`. `rewind_count` and `rewind_seconds`: what every
    new subscriber gets of them (0: no bound of that kind; both 0: nothing). `client_events`: whether those are kept
    too. A replay of more than `max_replay_entries` or `max_replay_bytes` is refused as `too_many`.
    """

    pattern: str
    history_size: int
    history_seconds: int
    rewind_count: int = 0
    rewind_seconds: int = 0
    client_events: bool = False
    max_replay_entries: int = 300
    max_replay_bytes: int = 1_048_576

    @property
    def retention(self) -> interface.Retention:
        return interface.Retention(self.history_size, self.history_seconds)

    @property
    def rewind(self) -> interface.Rewind | None:
        if not self.rewind_count and not self.rewind_seconds:
            return None
        return interface.Rewind(self.rewind_count, self.rewind_seconds)

    def history(
        self, after: interface.Position | None = None, rewind: interface.Rewind | None = None
    ) -> interface.RecoveryRequest:
        """What a subscriber may ask for: all after a position, or the newest, within this rule's bounds."""
        return interface.RecoveryRequest(after, rewind, self.max_replay_entries, self.max_replay_bytes)


class Rules:
    """The rules of one application, in their order."""

    __slots__ = ("_compiled", "_known", "_rules")

    def __init__(self, rules: tuple[Rule, ...] = ()) -> None:
        self._rules = rules
        self._compiled = [(_expression(rule.pattern), rule) for rule in rules]
        self._known: dict[str, Rule | None] = {}

    def __iter__(self) -> Iterator[Rule]:
        return iter(self._rules)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rules) and self._rules == other._rules

    def __hash__(self) -> int:
        return hash(self._rules)

    def of(self, channel: str) -> Rule | None:
        """The rule of a channel; None: it keeps nothing."""
        if not self._compiled:
            return None
        try:
            return self._known[channel]
        except KeyError:
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            found = next((rule for expression, rule in self._compiled if expression.fullmatch(channel)), None)
            self._known[channel] = found
            return found


def pattern_fault(pattern: str) -> str | None:
    """What is wrong with a pattern as a person wrote it, in one sentence. None: nothing."""
    if not _PATTERN.fullmatch(pattern):
        return "No channel's name fits: a pattern has letters, digits, _-=@,.; and *."
    if pattern.count("*") > MOST_STARS:
        return f"The pattern has {pattern.count('*')} stars; at most {MOST_STARS} are allowed."
    return None


def _expression(pattern: str) -> re.Pattern[str]:
    """Between two stars the first place that fits is as good as any other, so it is never given up for a later one:
    else a name that a client chose could cost seconds.
    """
    first, *others = (re.escape(part) for part in pattern.split("*"))
    if not others:
        return re.compile(first)
    *between, last = others
    found = "".join(f"(?>.*?{part})" for part in between if part)
    return re.compile(f"{first}{found}.*{last}", re.DOTALL)
