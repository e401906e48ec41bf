"""Fan-out to ten times as many subscribers: the cost per delivery should stay the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.load import rooms, rows, subjects
from tests.load.rows import fanout

NAME = "crowd"
TITLE = "Fan-out at saturation, ten times the subscribers"
COLUMNS: Sequence[rows.Column] = fanout.COLUMNS
COMPARED = fanout.COMPARED
LESS_IS_BETTER = True


def takes(subject: subjects.Subject) -> bool:
    return subject.name == subjects.FANFARE


def measure(subject: subjects.Subject, folder: Path, plan: rows.Plan) -> Iterator[rows.Measured]:
    with subject.running(folder, plan.cores.server) as running, rooms.opened(running, plan.crowd) as room:
        name, way = next(iter(running.ways().items()))
        with room.publisher(way) as publisher:
            yield rows.Measured(name, fanout.sample(room, publisher, way.window, running.pid, plan.seconds))
