"""A channel of 100 subscribers, and single events by HTTP at saturation.

Unlike the rows of the fan-out, this one counts the events in the received bytes, so servers that join events in one
frame take part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.load import rows, subjects
from tests.load.rows import room_posts

NAME = "hundred"
TITLE = "100 subscribers of one channel: single events by HTTP"
SUBSCRIBERS = 100
COMPARED = room_posts.COMPARED
LESS_IS_BETTER = True
COLUMNS: Sequence[rows.Column] = room_posts.COLUMNS


def takes(subject: subjects.Subject) -> bool:
    return room_posts.takes(subject)


def measure(subject: subjects.Subject, folder: Path, plan: rows.Plan) -> Iterator[rows.Measured]:
    yield room_posts.measured(subject, folder, plan, 1, SUBSCRIBERS)
