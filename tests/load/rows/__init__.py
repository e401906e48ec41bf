"""What is measured, a module each.

A row measures one subject once and yields a sample for each way of doing it. The report has the samples' columns, as
medians of all runs; one of the columns is compared with the same column of the rivals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from tests.load import machine, subjects


class Plan(NamedTuple):
    """How long, and where. Seconds are those of one sample."""

    cores: machine.Cores
    subscribers: int = 1_000
    crowd: int = 10_000
    seconds: float = 2.0
    calm_seconds: float = 5.0
    idle_seconds: float = 30.0


class Column(NamedTuple):
    """`value`: of a sample. `digits` behind the point, or `percent`."""

    head: str
    value: Callable[[Any], float]
    digits: int = 0
    percent: bool = False


class Measured(NamedTuple):
    way: str
    sample: Any  # of the row's own type
    saturates: bool = True


class Row(Protocol):
    """As a module: these names at its top."""

    NAME: str  # on the command line
    TITLE: str
    COLUMNS: Sequence[Column]
    COMPARED: Column  # of COLUMNS
    LESS_IS_BETTER: bool

    def takes(self, subject: subjects.Subject) -> bool:
        """Whether this subject can be measured so."""

    def measure(self, subject: Any, folder: Path, plan: Plan) -> Iterator[Measured]:
        """Of a subject that `takes` let through; `folder` is empty. Raises LoadError where a figure would be wrong."""


def all_rows() -> list[Row]:
    """In the order of the tables."""
    from tests.load.rows import crowd, fanout, idle, latency, posts, publish, small_rooms  # they need what is above

    return [fanout, crowd, latency, small_rooms, posts, publish, idle]
