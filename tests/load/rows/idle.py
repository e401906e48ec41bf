"""Idle connections: memory per connection, CPU per connect, and the CPU share of ten thousand of them.

Clients offer permessage-deflate and send a browser's headers. A connection counts as open when the server has sent its
first message. It subscribes to nothing, except on servers where every connection is a subscriber.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.load import connections, machine, rows, subjects
from tests.load.subjects import fanfare, soketi

NAME = "idle"
TITLE = "Idle connections"
FEW, MANY = 1_000, 5_000  # memory is the difference, without what the first connections allocate once
SETTLE_S = 1.0  # after the last handshake, until its memory is freed

# pusher-js pings after the seconds of silence that the server announces: 120 with both measured servers. Fanfare also
# pings every 30 s, so a sample takes that long.
CLIENT_PING_S = 120.0
CLIENT_PING = connections.text(b'{"event":"pusher:ping","data":{}}')


class Sample(NamedTuple):
    bytes_each: float  # resident memory of the server process
    connect_us: float  # CPU time of the server per connect
    accepted_per_second: float
    client_busy: float  # during the connects
    share: float  # of a core, for all connections of the crowd; NaN if not measured
    base_bytes: float  # private memory of the server process without connections

    @property
    def accepted_per_cpu_second(self) -> float:
        return 1e6 / self.connect_us


COMPARED = rows.Column("kB each", lambda sample: sample.bytes_each / 1e3, digits=1)
LESS_IS_BETTER = True
COLUMNS: Sequence[rows.Column] = (
    COMPARED,
    rows.Column("CPU µs per connect", lambda sample: sample.connect_us),
    rows.Column("accepted per CPU second", lambda sample: sample.accepted_per_cpu_second),
    rows.Column("accepted/s", lambda sample: sample.accepted_per_second),
    rows.Column("client's core meanwhile", lambda sample: sample.client_busy, percent=True),
    rows.Column("% of a core for 10,000", lambda sample: sample.share * 100, digits=2),
    rows.Column("MB without connections", lambda sample: sample.base_bytes / 1e6),
)
WAY = "connected"


def takes(subject: subjects.Subject) -> bool:
    return True


def measure(subject: subjects.Subject, folder: Path, plan: rows.Plan) -> Iterator[rows.Measured]:
    with subject.running(folder, plan.cores.server) as running:
        opened: list[connections.Connection] = []
        _settle()
        base = machine.private_bytes(running.pid)

        def connect(count: int) -> None:
            opened.extend(
                connections.opened(running.port, running.target, running.greeting, count, headers=connections.BROWSER)
            )

        try:
            connect(FEW)
            _settle()
            memory = machine.resident_bytes(running.pid)
            before = machine.clocks(running.pid)
            connect(MANY - FEW)
            wall, server, client = machine.clocks(running.pid).since(before)
            _settle()
            memory = machine.resident_bytes(running.pid) - memory
            share = math.nan
            if isinstance(subject, fanfare.Fanfare | soketi.Soketi):
                connect(plan.crowd - MANY)
                _settle()
                share = _share(running.pid, opened, plan.idle_seconds)
        finally:
            for one in opened:
                one.close()
    count = MANY - FEW
    yield rows.Measured(WAY, Sample(memory / count, server / count * 1e6, count / wall, client / wall, share, base))


def _settle() -> None:
    time.sleep(SETTLE_S)


def _share(pid: int, opened: list[connections.Connection], seconds: float) -> float:
    before = machine.clocks(pid)
    connections.read_for(opened, seconds, _pings(opened))
    spent = machine.clocks(pid).since(before)
    return spent.server_s / spent.wall_s


def _pings(opened: list[connections.Connection]) -> Callable[[float], None]:
    """Ping from each connection in turn, so that each pings once in CLIENT_PING_S."""
    pinged = 0

    def beat(passed: float) -> None:
        nonlocal pinged
        due = int(passed / CLIENT_PING_S * len(opened))
        while pinged < due:
            opened[pinged % len(opened)].send(CLIENT_PING)
            pinged += 1

    return beat
