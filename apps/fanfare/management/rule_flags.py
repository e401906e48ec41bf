"""Channel rules on a command line: `--history`, `--rewind` and `--replay`.

Each `--history` makes a rule; the other two say more about the one that has their pattern.
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
    required: int  # how many of the numbers must be there
    help: str


HISTORY = Flag(
    "--history",
    "PATTERN=COUNT,SECONDS",
    ("history_size", "history_seconds"),
    2,
    "keep so many events of each channel that fits, none for longer; * stands for any characters, the first pattern "
    "that fits a channel holds; may be given several times",
)
REWIND = Flag(
    "--rewind",
    "PATTERN=COUNT[,SECONDS]",
    ("rewind_count", "rewind_seconds"),
    1,
    "give so many of them to each new subscriber, none that is older",
)
REPLAY = Flag(
    "--replay",
    "PATTERN=ENTRIES,BYTES",
    ("max_replay_entries", "max_replay_bytes"),
    2,
    "give no more than so much to a client that comes back; 300,1048576 if not given",
)
FLAGS = (HISTORY, REWIND, REPLAY)


def add_arguments(parser: CommandParser) -> None:
    for flag in FLAGS:
        parser.add_argument(flag.name, metavar=flag.form, action="append", default=[], help=flag.help)


def read(options: Mapping[str, Sequence[str]]) -> list[models.ChannelRule]:
    """The rules in their order, neither saved nor of an application yet. Raises CommandError."""
    values: dict[str, dict[str, str]] = {}
    flags: dict[tuple[str, str], str] = {}  # by pattern and column, as it was written
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
