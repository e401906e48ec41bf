"""Stock Channels with its in-memory layer, under the same uvicorn."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.harness import deployments, servers
from tests.load import machine, processes, publishers, subjects

# One event keeps it busy for a quarter of a second, so more would only wait; its layer drops messages above 100 per
# consumer.
WINDOW = 4


class StockChannels:
    name = subjects.STOCK
    one_frame_each = True

    def absent(self) -> str | None:
        return None

    def versions(self) -> str:
        return machine.versions("django", "channels", "uvicorn", "uvloop", "websockets")

    @contextlib.contextmanager
    def running(self, folder: Path, core: int) -> Iterator[Running]:
        port = servers.free_port()
        command = ["uvicorn", "tests.load.stock_channels:application", "--port", str(port), "--lifespan", "off"]
        environment = {name: text for name, text in os.environ.items() if not name.startswith(deployments.OWN_PREFIXES)}
        log = folder / "log"
        with processes.running(processes.own(command), port, environment, core=core, log=log) as process:
            yield Running(process)


class Running(subjects.Silent):
    target = "/subscribe"

    def ways(self) -> Mapping[str, subjects.Way]:
        return {"group_send": subjects.Way(lambda: publishers.WebSocket(self.port, "/publish"), WINDOW)}
