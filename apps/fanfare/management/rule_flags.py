"""Channel rules on a command line: `--history`, `--rewind` and `--replay`.

Each `--history` creates a rule. The other two flags set further fields of the rule with their pattern.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from django.core.management.base import CommandError, CommandParser

from fanfare.applications import models


@dataclass(frozen=True)
class Flag:
    name: str
    form: str
    columns: tuple[str, ...]
    required: int  # the number of required values
    help: str


HISTORY = Flag(
    "--history",
    "PATTERN=COUNT,SECONDS",
    ("history_size", "history_seconds"),
    2,
    "keep COUNT events of each matching channel for SECONDS; * matches any characters, and the first matching pattern "
    "applies; can be repeated",
)
REWIND = Flag(
    "--rewind",
    "PATTERN=COUNT[,SECONDS]",
    ("rewind_count", "rewind_seconds"),
    1,
    "send the newest COUNT events, none older than SECONDS, to each new subscriber",
)
REPLAY = Flag(
    "--replay",
    "PATTERN=ENTRIES,BYTES",
    ("max_replay_entries", "max_replay_bytes"),
    2,
    "the largest replay for a client that reconnects; 300,1048576 by default",
)
FLAGS = (HISTORY, REWIND, REPLAY)


def add_arguments(parser: CommandParser) -> None:
    for flag in FLAGS:
        parser.add_argument(flag.name, metavar=flag.form, action="append", default=[], help=flag.help)


def read(options: Mapping[str, Sequence[str]]) -> list[models.ChannelRule]:
    """The rules in order, not saved and without an application. Raises CommandError."""
    values: dict[str, dict[str, str]] = {}
    flags: dict[tuple[str, str], str] = {}  # the argument by pattern and column, for error messages
    for flag in FLAGS:
        seen: set[str] = set()
        for text in options[flag.name.removeprefix("--")]:
            pattern, numbers = _split(flag, text)
            if pattern in seen:
                raise CommandError(f"{flag.name}: the pattern {pattern} appears twice.")
            if flag is not HISTORY and pattern not in values:
                raise CommandError(f"{flag.name} {text}: there is no {HISTORY.name} with this pattern.")
            seen.add(pattern)
            values.setdefault(pattern, {}).update(numbers)
            flags.update({(pattern, column): f"{flag.name} {text}" for column in ("pattern", *numbers)})
    rules = [
        models.ChannelRule(position=position, pattern=pattern, **numbers)
        for position, (pattern, numbers) in enumerate(values.items(), start=1)
    ]
    for rule in rules:
        for column, problem in rule.problems().items():
            raise CommandError(f"{flags[rule.pattern, column]}: {problem}")
    return rules


def _split(flag: Flag, text: str) -> tuple[str, dict[str, str]]:
    """The pattern, and the numbers by their columns, as they were written. A pattern may have both `=` and `,`."""
    pattern, _, written = text.rpartition("=")
    numbers = [number.strip() for number in written.split(",")]
    if not pattern or not flag.required <= len(numbers) <= len(flag.columns):
        raise CommandError(f"{flag.name}: {text!r} is not {flag.form}.")
    return pattern, dict(zip(flag.columns, numbers, strict=False))
