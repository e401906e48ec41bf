"""The servers that are compared, a module each. A new one is a class with this interface and a line in `ALL`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple, Protocol

from tests.harness import wire
from tests.load import publishers

# The two that the bars speak of.
FANFARE = "Fanfare"
STOCK = "stock Channels, in-memory layer"


class Way(NamedTuple):
    """A way of publishing. `window`: how many events may be under way, enough to keep the server busy.

    `saturates`: it publishes without waiting for what it has published, so the bars of saturation hold for it.
    """

    open: Callable[[], publishers.Publisher]
    window: int
    saturates: bool = True


class Running(Protocol):
    """A subject that was started."""

    pid: int

    def join(self, count: int) -> list[wire.Wire]:
        """This many subscribers of the one channel, with nothing left to read."""

    def ways(self) -> Mapping[str, Way]:
        """How one publishes to it, by a name for the table. The first is also the one of the calm rows."""


class Subject(Protocol):
    name: str

    def absent(self) -> str | None:
        """Why it cannot run here; None if it can."""

    def versions(self) -> str: ...

    def running(self, folder: Path, core: int) -> AbstractContextManager[Running]:
        """Started in an empty folder, pinned to a core, ended at the end. Raises NotStarted."""


def all_subjects() -> list[Subject]:
    """In the order of the tables."""
    from tests.load.subjects import channels, fanfare  # each of them needs what is above

    return [fanfare.Fanfare(), channels.StockChannels()]
