"""The results: the samples of all runs by row, subject and method, with median and range."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tests.load import rows


class Key(NamedTuple):
    row: str
    subject: str
    way: str
    saturates: bool = True  # whether the targets for saturation apply


class Spread(NamedTuple):
    """Median and range of several runs."""

    median: float
    least: float
    most: float


def spread(values: Iterable[float]) -> Spread:
    known = list(values)
    return Spread(statistics.median(known), min(known), max(known))


@dataclass
class Figures:
    samples: dict[Key, list[Any]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)  # error messages by row and subject

    def add(self, key: Key, sample: Any) -> None:
        self.samples.setdefault(key, []).append(sample)

    def keys(self, row: str, subject: str | None = None) -> list[Key]:
        return [key for key in self.samples if key.row == row and subject in (None, key.subject)]

    def spread(self, key: Key, column: rows.Column) -> Spread:
        return spread(column.value(sample) for sample in self.samples[key])

    def median(self, key: Key, column: rows.Column) -> float:
        return self.spread(key, column).median

    def rival(self, row: rows.Row, subject: str, way: str, column: rows.Column | None = None) -> float | None:
        """The rival's figure to compare with: of the same method, otherwise of its best one."""
        same = [key for key in self.keys(row.NAME, subject) if key.way == way]
        return self.median(same[0], column or row.COMPARED) if same else self.best(row, subject, column)

    def best(self, row: rows.Row, subject: str, column: rows.Column | None = None) -> float | None:
        """A subject's best median of a column, by default the compared one, over its saturating methods."""
        medians = [self.median(key, column or row.COMPARED) for key in self.keys(row.NAME, subject) if key.saturates]
        known = [value for value in medians if value == value]  # NaN: not measured with this method
        if not known:
            return None
        return min(known) if row.LESS_IS_BETTER else max(known)
