"""The targets. A target whose figures were not measured has no verdict; the report lists it as not judged."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from tests.load import figures, rows, subjects
from tests.load.rows import (
    connect,
    console,
    crowd,
    fanout,
    hundred,
    idle,
    latency,
    lone,
    posts,
    publish,
    room_posts,
    small_rooms,
)


class Verdict(NamedTuple):
    reached: bool
    text: str


class Target(Protocol):
    def judge(self, found: figures.Figures) -> Iterator[Verdict]: ...

    def __str__(self) -> str:
        """The requirement, for the list of targets without figures."""


class Limit(NamedTuple):
    """A bound on a column of Fanfare's: of the worst saturating method, or of one method."""

    row: rows.Row
    column: rows.Column
    at_most: float = math.inf
    at_least: float = -math.inf
    subjects: Sequence[str] = subjects.OURS
    way: str | None = None

    def judge(self, found: figures.Figures) -> Iterator[Verdict]:
        for subject in self.subjects:
            values = [
                (found.median(key, self.column), key.way)
                for key in found.keys(self.row.NAME, subject)
                if self.way == key.way or (self.way is None and key.saturates)
            ]
            known = [(value, way) for value, way in values if not math.isnan(value)]
            if known:
                value, way = max(known) if self.at_most < math.inf else min(known)
                yield Verdict(self.at_least <= value <= self.at_most, f"{subject}, {way}: {_number(value)} {self}")

    def __str__(self) -> str:
        bound = f"at most {_number(self.at_most)}" if self.at_most < math.inf else f"at least {_number(self.at_least)}"
        return f"{self.column.head} ({self.row.NAME}), {bound}"


class BestOf(NamedTuple):
    """A bound on Fanfare's best method, for a figure whose method the user chooses."""

    row: rows.Row
    at_least: float

    def judge(self, found: figures.Figures) -> Iterator[Verdict]:
        for subject in subjects.OURS:
            value = found.best(self.row, subject)
            if value is not None:
                yield Verdict(value >= self.at_least, f"{subject}, best method: {_number(value)} {self}")

    def __str__(self) -> str:
        return f"{self.row.COMPARED.head} ({self.row.NAME}), at least {_number(self.at_least)}"


class Times(NamedTuple):
    """Fanfare is at least `times` times better than a rival in the same run, with each saturating method. The rival's
    figure is from the same method if it has it, otherwise from its best one. 1 means no worse. `column`: the row's
    compared one by default.
    """

    row: rows.Row
    times: float
    rival: str
    column: rows.Column | None = None

    def judge(self, found: figures.Figures) -> Iterator[Verdict]:
        for subject in subjects.OURS:
            for key in found.keys(self.row.NAME, subject):
                rival = found.rival(self.row, self.rival, key.way, self.column)
                if key.saturates and rival is not None:
                    ours = found.median(key, self.column or self.row.COMPARED)
                    ratio = times_better(self.row, ours, rival)
                    yield Verdict(ratio >= self.times, f"{subject}, {key.way}: {_number(ratio)} {self}")

    def __str__(self) -> str:
        head = (self.column or self.row.COMPARED).head
        return f"times better than {self.rival} in {head} ({self.row.NAME}), at least {_number(self.times)}"


class Grows(NamedTuple):
    """A row costs at most `times` times as much as another row, with the same method."""

    row: rows.Row
    beside: rows.Row
    times: float

    def judge(self, found: figures.Figures) -> Iterator[Verdict]:
        for key in found.keys(self.row.NAME):
            other = key._replace(row=self.beside.NAME)
            if key.subject in subjects.OURS and other in found.samples:
                ratio = found.median(key, self.row.COMPARED) / found.median(other, self.beside.COMPARED)
                yield Verdict(ratio <= self.times, f"{key.subject}, {key.way}: {_number(ratio)} {self}")

    def __str__(self) -> str:
        return f"times the cost of {self.beside.NAME} ({self.row.NAME}), at most {self.times:g}"


PLAIN = (subjects.FANFARE,)  # the documented command, with Fanfare's own WebSocket class
ACCEPTING = (subjects.FANFARE, subjects.FANFARE_OPEN)


def _column(row: rows.Row, head: str) -> rows.Column:
    return next(column for column in row.COLUMNS if column.head == head)


TARGETS: tuple[Target, ...] = (
    Limit(fanout, fanout.COMPARED, at_most=1.3),
    Times(fanout, 2, subjects.NCHAN),
    Times(fanout, 7, subjects.SOKETI),
    Times(fanout, 50, subjects.STOCK),
    Limit(hundred, hundred.COMPARED, at_most=3.3, subjects=PLAIN),
    Grows(crowd, fanout, 1.2),
    Times(latency, 1, subjects.NCHAN),
    Times(latency, 1 / 0.9, subjects.NCHAN, latency.CPU),
    Times(latency, 1, subjects.SOKETI),
    Times(small_rooms, 1.2, subjects.SOKETI),
    Limit(room_posts, room_posts.COMPARED, at_most=14, subjects=PLAIN),
    Limit(posts, _column(posts, "CPU µs per event"), at_most=40, way=posts.SINGLE),
    Limit(posts, _column(posts, "CPU µs per event"), at_most=8.5, way=posts.BATCHED),
    Limit(lone, lone.COMPARED, at_most=95, way=lone.SINGLE),
    Limit(lone, lone.COMPARED, at_most=16, way=lone.BATCHED),
    Limit(connect, connect.COMPARED, at_most=130, subjects=ACCEPTING),
    BestOf(publish, at_least=50_000),
    Limit(publish, _column(publish, "p50 ms"), at_most=0.5),
    Limit(publish, _column(publish, "p99 ms"), at_most=5.0),
    Limit(idle, _column(idle, "kB each"), at_most=8.0, subjects=PLAIN),
    Limit(idle, _column(idle, "CPU µs per connect"), at_most=550, subjects=PLAIN),
    Limit(idle, _column(idle, "MB without connections"), at_most=55, subjects=PLAIN),
    Limit(idle, _column(idle, "accepted per CPU second"), at_least=3_000, subjects=ACCEPTING),
    Limit(idle, _column(idle, "% of a core for 10,000"), at_most=2.0, subjects=PLAIN),
    Limit(console, console.COMPARED, at_most=5.0, subjects=PLAIN, way=console.ONE_PERSON),
)


def verdicts(found: figures.Figures) -> list[Verdict]:
    return [verdict for target in TARGETS for verdict in target.judge(found)]


def not_judged(found: figures.Figures) -> list[str]:
    return [str(target) for target in TARGETS if not any(True for _ in target.judge(found))]


def times_better(row: rows.Row, ours: float, rival: float) -> float:
    """How many times better our figure is: less or more, as the row says."""
    if row.LESS_IS_BETTER:
        return rival / ours if ours else math.inf
    return ours / rival if rival else math.inf


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.2f}"
