"""The measurements, one module each.

A row measures one server once and yields a sample for each method. The report shows the samples' columns as medians of
all runs; one column is compared with the same column of the rivals.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from tests.load import machine, subjects


class Plan(NamedTuple):
    """The cores, sizes, and seconds per sample."""

    cores: machine.Cores
    subscribers: int = 1_000
    crowd: int = 10_000
    seconds: float = 2.0
    latency_seconds: float = 5.0
    idle_seconds: float = 30.0
    connections: int = 5_000
    rate: float = 5_000.0
    console_seconds: float = 5.0


class Column(NamedTuple):
    """`value`: computes it from a sample. `digits`: after the decimal point."""

    head: str
    value: Callable[[Any], float]
    digits: int = 0
    percent: bool = False


class Measured(NamedTuple):
    way: str
    sample: Any  # of the row's type
    saturates: bool = True


class Row(Protocol):
    """A module with these names."""

    NAME: str  # on the command line
    TITLE: str
    COLUMNS: Sequence[Column]
    COMPARED: Column  # of COLUMNS
    LESS_IS_BETTER: bool

    def takes(self, subject: subjects.Subject) -> bool:
        """Whether the row applies to this server."""

    def measure(self, subject: Any, folder: Path, plan: Plan) -> Iterator[Measured]:
        """Measure a server that `takes` accepts. `folder` is empty. Raises LoadError instead of a wrong figure."""


MODULES = (
    "fanout",
    "hundred",
    "crowd",
    "latency",
    "small_rooms",
    "room_posts",
    "posts",
    "lone",
    "connect",
    "publish",
    "idle",
    "console",
)


def all_rows() -> list[Row]:
    """In the order of the tables."""
    return [importlib.import_module(f"{__name__}.{name}") for name in MODULES]
