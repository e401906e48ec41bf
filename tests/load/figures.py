"""What came out, by subject and way of publishing: the samples of all runs, and their median with the range."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from tests.load.rows import fanout, latency

T = TypeVar("T")


class Key(NamedTuple):
    subject: str
    way: str
    saturates: bool = True  # whether the bars of saturation hold for this way


class Spread(NamedTuple):
    """Of several runs."""

    median: float
    least: float
    most: float

    def scaled(self, factor: float) -> Spread:
        return Spread(self.median * factor, self.least * factor, self.most * factor)


def spread(samples: Iterable[T], value: Callable[[T], float]) -> Spread:
    values = [value(sample) for sample in samples]
    return Spread(statistics.median(values), min(values), max(values))


@dataclass
class Figures:
    fanout: dict[Key, list[fanout.Sample]] = field(default_factory=dict)
    latency: dict[Key, list[latency.Sample]] = field(default_factory=dict)

    def cpu_us(self, key: Key) -> float:
        """The median over the runs."""
        return spread(self.fanout[key], lambda sample: sample.cpu_us).median
