"""Clients that arrive: connect, handshake, subscribe to a public channel, and the first answer.

Clients send a browser's headers. Groups of connections are opened and closed in turn, so the number of open ones stays
small; only the time in which they connect is counted.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.load import connections, machine, rows, subjects
from tests.load.rows import room_posts

NAME = "connect"
TITLE = "Connect, subscribe, first answer"
GROUP = 500
SETTLE_S = 0.3  # after a group was closed


class Sample(NamedTuple):
    connects: int
    wall_s: float
    server_cpu_s: float
    client_cpu_s: float


COMPARED = rows.Column("CPU µs per client", lambda sample: sample.server_cpu_s / sample.connects * 1e6)
LESS_IS_BETTER = True
COLUMNS: Sequence[rows.Column] = (
    COMPARED,
    rows.Column("clients/s", lambda sample: sample.connects / sample.wall_s),
    rows.Column("client's core", lambda sample: sample.client_cpu_s / sample.wall_s, percent=True),
)
WAY = "connected and subscribed"


def takes(subject: subjects.Subject) -> bool:
    return subject.name == subjects.FANFARE_OPEN or room_posts.takes(subject)


def measure(subject: subjects.Subject, folder: Path, plan: rows.Plan) -> Iterator[rows.Measured]:
    with subject.running(folder, plan.cores.server) as running:
        _connect(running)  # what the first clients load once
        connects, spent = 0, machine.Clocks(0.0, 0.0, 0.0)
        while spent.wall_s < plan.seconds:
            clocks = _connect(running)
            connects += GROUP
            spent = machine.Clocks(*(one + other for one, other in zip(spent, clocks, strict=True)))
        yield rows.Measured(WAY, Sample(connects, *spent))


def _connect(running: subjects.Running) -> machine.Clocks:
    before = machine.clocks(running.pid)
    opened = connections.opened(running.port, running.target, running.joining, GROUP, headers=connections.BROWSER)
    spent = machine.clocks(running.pid).since(before)
    for one in opened:
        one.close()
    time.sleep(SETTLE_S)
    return spent
