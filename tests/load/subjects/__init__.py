"""The compared servers, one module each. To add one, write a class like `Subject` and add it to `all_subjects`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple, Protocol

from tests.load import connections, processes, publishers

# The names that the targets use.
FANFARE = "Fanfare"
FANFARE_OTHER = "Fanfare on uvicorn's WebSocket class"
FANFARE_OPEN = "Fanfare without accept limit and log lines"
STOCK = "stock Channels, in-memory layer"
NCHAN = "nchan"
SOKETI = "soketi"
SOCKUDO = "Sockudo"
CENTRIFUGO = "Centrifugo"
OURS = (FANFARE, FANFARE_OTHER, FANFARE_OPEN)


class Way(NamedTuple):
    """A method of publishing. `window`: the number of events in flight, enough to keep the server busy.

    `saturates`: it publishes without waiting for earlier events, so the targets for saturation apply.
    """

    open: Callable[[], publishers.Publisher]
    window: int
    saturates: bool = True


class Running(Protocol):
    """A running server."""

    pid: int  # of the process that serves connections
    port: int
    target: str  # path and query for clients

    def greeting(self) -> connections.Dialogue:
        """The dialogue until a client is connected."""

    def joining(self) -> connections.Dialogue:
        """The dialogue until a client is subscribed to the channel and has no unread frames."""

    def ways(self) -> Mapping[str, Way]:
        """The methods of publishing by their names in the tables. Latency is measured with the first one."""


class Silent:
    """A server without a first message, on which every connection is a subscriber."""

    def __init__(self, process: processes.Process) -> None:
        self.pid = process.pid
        self.port = process.port

    def greeting(self) -> connections.Dialogue:
        return connections.silent()

    def joining(self) -> connections.Dialogue:
        return self.greeting()


class Subject(Protocol):
    name: str
    # Whether each event has its own frame. Centrifugo joins up to four in one frame, as lines, and the client of the
    # fan-out rows cannot split them, because it finds events by their size.
    one_frame_each: bool

    def absent(self) -> str | None:
        """The reason why it cannot run here; None if it can."""

    def versions(self) -> str: ...

    def running(self, folder: Path, core: int) -> AbstractContextManager[Running]:
        """Start the server in an empty folder, pinned to a core; stop it at the end. Raises NotStarted."""


def all_subjects() -> list[Subject]:
    """In the order of the tables."""
    from tests.load.subjects import centrifugo, channels, fanfare, nchan, relays, sockudo, soketi  # they import this

    return [
        fanfare.Fanfare(),
        fanfare.OtherClass(),
        fanfare.Open(),
        nchan.Nchan(),
        soketi.Soketi(),
        sockudo.Sockudo(),
        relays.Relay("ws", "ws"),
        relays.Relay("Socket.IO", "socket.io"),
        centrifugo.Centrifugo(),
        channels.StockChannels(),
    ]
