"""Channel rules: patterns of channel names that select the channels with a history, and its bounds.

A channel that matches no rule keeps no history.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from fanfare.engine import interface

# The cache of names to rules is bounded, because clients choose the names.
CACHED_NAMES = 10_000

MOST_STARS = 10  # per pattern; each star costs a search through the name

# The characters of channel names, and the star. Names of server-to-user channels start with #.
_PATTERN = re.compile(r"#?[-A-Za-z0-9_=@,.;*]+")


@dataclass(frozen=True, slots=True)
class Rule:
    """`pattern`: a channel name in which `*` matches any characters, or none. The first matching rule applies.

    The history has at most `history_size` entries, none older than `history_seconds`. A new subscriber gets the newest
    `rewind_count` entries of the last `rewind_seconds` (0: no limit of that kind; both 0: none). `client_events`:
    whether client events are kept. A recovery of more than `max_replay_entries` or `max_replay_bytes` is refused as
    `too_many`.

    `stream_window_ms`: in which the appends of a stream are joined (0: FANFARE_STREAM_WINDOW_MS). `stream_cancel`:
    whether subscribers may cancel streams. `record_members`: whether the joins and leaves of presence channels are
    kept, within the same bounds as the events.
    """

    pattern: str
    history_size: int
    history_seconds: int
    rewind_count: int = 0
    rewind_seconds: int = 0
    client_events: bool = False
    max_replay_entries: int = 300
    max_replay_bytes: int = 1_048_576
    stream_window_ms: int = 0
    stream_cancel: bool = False
    record_members: bool = False

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
        """A recovery within the bounds of this rule: the entries after a position, or the newest ones."""
        return interface.RecoveryRequest(after, rewind, self.max_replay_entries, self.max_replay_bytes)


class Rules:
    """The rules of one application, in order."""

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
        """The first rule that matches the channel; None: it keeps no history."""
        if not self._compiled:
            return None
        try:
            return self._known[channel]
        except KeyError:
            if len(self._known) >= CACHED_NAMES:
                self._known.clear()
            found = next((rule for expression, rule in self._compiled if expression.fullmatch(channel)), None)
            self._known[channel] = found
            return found


def pattern_fault(pattern: str) -> str | None:
    """An error message for an invalid pattern; None: it is valid."""
    if not _PATTERN.fullmatch(pattern):
        return "The pattern matches no channel name: use letters, digits, _-=@,.; and *."
    if pattern.count("*") > MOST_STARS:
        return f"The pattern has {pattern.count('*')} stars; at most {MOST_STARS} are allowed."
    return None


def _expression(pattern: str) -> re.Pattern[str]:
    """Each part between two stars matches at its first occurrence, in an atomic group: backtracking could take seconds
    for a name that a client chose.
    """
    first, *others = (re.escape(part) for part in pattern.split("*"))
    if not others:
        return re.compile(first)
    *between, last = others
    found = "".join(f"(?>.*?{part})" for part in between if part)
    return re.compile(f"{first}{found}.*{last}", re.DOTALL)
