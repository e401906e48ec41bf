"""The servers that are compared, a module each. A new one is a class like `Subject` and a line in `all_subjects`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple, Protocol

from tests.load import connections, processes, publishers

# Those that the bars speak of.
FANFARE = "Fanfare"
FANFARE_OTHER = "Fanfare on uvicorn's WebSocket class"
STOCK = "stock Channels, in-memory layer"
NCHAN = "nchan"
SOKETI = "soketi"
OURS = (FANFARE, FANFARE_OTHER)


class Way(NamedTuple):
    """A way of publishing. `window`: how many events may be under way, enough to keep the server busy.

    `saturates`: it publishes without waiting for what it has published, so the bars of saturation hold for it.
    """

    open: Callable[[], publishers.Publisher]
    window: int
    saturates: bool = True


class Running(Protocol):
    """A subject that was started."""

    pid: int  # of the process that serves connections
    port: int
    target: str  # where a client connects: path and query

    def greeting(self) -> connections.Dialogue:
        """Until a client is connected."""

    def joining(self) -> connections.Dialogue:
        """Until a client is subscribed to the one channel, with nothing left to read."""

    def ways(self) -> Mapping[str, Way]:
        """How one publishes to it, by a name for the table. The first is also the one of the calm rows."""


class Silent:
    """What is common to those that greet nobody, and on which whoever is connected is subscribed."""

    def __init__(self, process: processes.Process) -> None:
        self.pid = process.pid
        self.port = process.port

    def greeting(self) -> connections.Dialogue:
        return connections.silent()

    def joining(self) -> connections.Dialogue:
        return self.greeting()


class Subject(Protocol):
    name: str
    # Whether each event comes in a frame of its own. Centrifugo puts up to four into one, as lines; the client of the
    # fan-out rows, which finds events by their size, does not take them apart.
    one_frame_each: bool

    def absent(self) -> str | None:
        """Why it cannot run here, in one sentence; None if it can."""

    def versions(self) -> str: ...

    def running(self, folder: Path, core: int) -> AbstractContextManager[Running]:
        """Started in an empty folder, pinned to a core, ended at the end. Raises NotStarted."""


def all_subjects() -> list[Subject]:
    """In the order of the tables."""
    from tests.load.subjects import centrifugo, channels, fanfare, nchan, relays, soketi  # they need what is above

    return [
        fanfare.Fanfare(),
        fanfare.OtherClass(),
        nchan.Nchan(),
        soketi.Soketi(),
        relays.Relay("ws", "ws"),
        relays.Relay("Socket.IO", "socket.io"),
        centrifugo.Centrifugo(),
        channels.StockChannels(),
    ]
