"""The two halves of the promise: with room for it nothing is lost, and without room nothing is lost in silence."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tests.harness import proxies, pusherjs, servers
from tests.kills import chaos, followers, histories, publisher, stores, transcripts

# Connections are reset after a random time in these ranges.
CLIENT_LIFE_S = (1.0, 2.0)
PUBLISHER_LIFE_S = (3.0, 6.0)

ARRIVAL_S = 180.0  # to receive the last event after the last failure; a restarted server may need a minute of it
LOOK_S = 0.5  # between two checks for the last event
WATCH_S = 0.5  # between two checks of which worker holds which connection

# A duplicate was first received no longer than this before its connection was lost: the interval of the
# acknowledgements, the second in which they are processed, and one more for a busy machine.
ACK_S = 5.0
OLDEST_DUPLICATE_S = ACK_S + 1.0 + 1.0


class Round(NamedTuple):
    """`flags`: the channel rules, for createapplication. `reasons`: by channel, the reasons with which losses may be
    reported; empty if no event may be lost. `must_lose`: a run in which no loss is reported proves nothing.
    `failover`: the store may lose what it acknowledged.
    """

    title: str
    flags: tuple[str, ...]
    reasons: Mapping[str, tuple[str, ...]]
    kinds: tuple[str, ...]
    must_lose: bool = True
    failover: bool = False

    def only(self, parts: Sequence[str]) -> Round:
        """This round with the kinds of clients whose names contain one of `parts`; all if empty."""
        return self._replace(kinds=tuple(kind for kind in self.kinds if not parts or any(one in kind for one in parts)))


WHOLE = Round(
    "History of 200,000 events, replays of up to 50,000 or 32 MiB",
    ("--history", "c*=200000,600", "--replay", "c*=50000,33554432"),
    {"counts": ()},
    (followers.SESSION, followers.PLUGIN, followers.SSE, followers.PLAIN),
)
BOUNDED = Round(
    "`few`: history of 100 events; `many`: history of 200,000 and the default replay limit of 300",
    ("--history", "few=100,600", "--history", "many=200000,600"),
    {"few": ("position_expired",), "many": ("too_many",)},
    (followers.SESSION, followers.PLUGIN, followers.SSE),
)


MOVES = WHOLE._replace(title="The log moves between stores")
CUTS = WHOLE._replace(title="The network between a node and the store is cut")
FAILOVER = Round(
    "Failovers and losses of the store",
    WHOLE.flags,
    {"counts": ("epoch_changed", "position_expired")},
    (followers.SESSION, followers.PLUGIN, followers.SSE),
    must_lose=False,
    failover=True,
)


@dataclass
class Row:
    """One client. `moves`: reconnects to another worker. `faults`: broken guarantees."""

    kind: str
    channel: str
    resets: int
    moves: int
    findings: transcripts.Findings
    faults: list[str]


@dataclass
class Result:
    title: str
    published: int
    longest_s: float
    retries: collections.Counter[str]
    done: collections.Counter[str]
    rows: list[Row]

    @property
    def faults(self) -> list[str]:
        return [f"{row.kind} on {row.channel}: {fault}" for row in self.rows for fault in row.faults]


async def play(
    this: Round,
    fleet: servers.Fleet,
    runtime: pusherjs.Runtime,
    *,
    seconds: float,
    per_second: int,
    every_s: float,
    store: stores.Store | None = None,
    keep: Path | None = None,
) -> Result:
    """`every_s`: seconds between two failures. `keep`: the file that gets the raw history."""
    store = store or stores.Store()
    settings = {
        "FANFARE_LOG_SECONDS": str(chaos.LOG_SECONDS),
        "FANFARE_RESUME_ACK_SECONDS": str(ACK_S),
        **store.environment,
    }
    nodes = [fleet.deployment(**settings, **node) for node in store.nodes]
    deployment = nodes[0]
    if store.environment:  # it has a database of its own
        await asyncio.to_thread(deployment.manage, "migrate", "--verbosity", "0")
    application = await asyncio.to_thread(deployment.create_application, "Kills", *this.flags)
    command = "gunicorn" if len(nodes) == 1 else "gunicorn pair"
    first, *others = [await asyncio.to_thread(fleet.start, command, node) for node in nodes]
    restartable = chaos.RestartableServer(fleet, first, others)
    try:
        async with contextlib.AsyncExitStack() as stack:
            clients: list[followers.Follower] = []
            for channel in this.reasons:
                for kind in this.kinds:
                    to = await stack.enter_async_context(restartable.proxy(CLIENT_LIFE_S).running())
                    one = followers.Follower(kind, channel, to, application)
                    clients.append(await stack.enter_async_context(one.following(runtime)))
            to = await stack.enter_async_context(restartable.proxy(PUBLISHER_LIFE_S).running())
            backend = publisher.Publisher(to, application, list(this.reasons), per_second)
            storm = chaos.Chaos(restartable, [one.proxy for one in clients], store.acts, store.places)
            census = Census(restartable, [one.proxy for one in clients])
            with _in_background(
                storm.run(every_s, store.order),
                census.run(),
                restartable.watch(),
            ) as background:
                await backend.run(seconds)
                for task in background:
                    if task.done():
                        task.result()
                for one in clients:
                    one.proxy.life_s = None
            await _calm(restartable)
            whole = [one for one in clients if one.kind != followers.PLAIN]
            await arrival(whole, backend, and_more=any(this.reasons.values()))
            history = histories.History(
                this.title,
                dict(this.reasons),
                this.must_lose,
                backend.calls,
                [
                    histories.Client(
                        one.kind, one.channel, one.transcript.lines, one.proxy.resets, census.moves(one.proxy)
                    )
                    for one in clients
                ],
            )
    finally:
        for node in restartable.nodes:
            await asyncio.to_thread(node.stop)
    if keep is not None:
        history.write(keep)
    return judge(history, storm.done, backend.longest_s)


def judge(history: histories.History, done: collections.Counter[str] | None = None, longest_s: float = 0.0) -> Result:
    """The findings of a history, which may have been read from a file."""
    rows = [
        Row(
            one.kind,
            one.channel,
            one.resets,
            one.moves,
            found := history.examine(one),
            faults_of(
                one.kind,
                found,
                history.reasons[one.channel],
                must_lose=history.must_lose,
                repeated=histories.repeated(history.calls),
            ),
        )
        for one in history.clients
    ]
    retries = histories.outcomes(history.calls)
    return Result(history.title, history.acknowledged, longest_s, retries, done or collections.Counter(), rows)


class Census:
    """Records which worker holds which connection."""

    def __init__(self, restartable: chaos.RestartableServer, proxies: Sequence[proxies.TcpProxy]) -> None:
        self._server = restartable
        self._proxies = proxies
        self._workers: dict[int, int] = {}  # by port

    async def run(self) -> None:
        while True:
            ports = [one.upstream_ports[-1] for one in self._proxies if one.upstream_ports]
            self._workers |= await asyncio.to_thread(self._server.workers_of, ports)
            await asyncio.sleep(WATCH_S)

    def moves(self, of: proxies.TcpProxy) -> int:
        workers = [self._workers[port] for port in of.upstream_ports if port in self._workers]
        return sum(one != other for one, other in itertools.pairwise(workers))


@contextlib.contextmanager
def _in_background(*coroutines: object) -> Iterator[list[asyncio.Task[None]]]:
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]  # type: ignore[call-overload]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()


async def _calm(restartable: chaos.RestartableServer) -> None:
    """Restart the server if the last failure left it stopped."""
    if restartable.server.process.poll() is not None:
        await restartable.restart(servers.Server.kill)


async def arrival(
    clients: Sequence[followers.Follower], backend: publisher.Publisher, *, and_more: bool = False
) -> None:
    """Wait until the clients have the last event, or ARRIVAL_S. `and_more`: publish further events meanwhile, because a
    client that lost the last one cannot receive it.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + ARRIVAL_S
    while any(one.transcript.highest < backend.acknowledged for one in clients) and loop.time() < deadline:
        await asyncio.sleep(LOOK_S)
        if and_more and any(one.transcript.highest < backend.acknowledged for one in clients):
            await backend.publish_one()


def faults_of(
    kind: str, found: transcripts.Findings, reasons: Sequence[str], *, must_lose: bool = True, repeated: int = 0
) -> list[str]:
    """`reasons`: at least one loss must be reported, with these reasons only; empty if no event may be lost.

    `repeated`: events whose call was repeated. A store of a new generation may not know their idempotency keys.
    """
    if kind == followers.PLAIN:
        return [] if found.unreported else ["it lost no event, so this run proves nothing"]
    faults = []
    if found.unreported:
        faults.append(f"{found.unreported} events were lost without a report")
    if found.out_of_order:
        faults.append(f"{found.out_of_order} events came after a later one")
    if kind != followers.SESSION and found.duplicates > (repeated if "epoch_changed" in reasons else 0):
        faults.append(f"{found.duplicates} duplicates")
    if found.oldest_duplicate_s > OLDEST_DUPLICATE_S:
        faults.append(
            f"a duplicate after {found.oldest_duplicate_s:.1f} s; at most {OLDEST_DUPLICATE_S:g} s are allowed"
        )
    faults += [
        f"{count} events were lost: {reason}" for reason, count in found.reported.items() if reason not in reasons
    ]
    if found.ghosts:
        faults.append(f"{found.ghosts} events were received before they were published")
    if reasons and must_lose and not found.reported:
        faults.append("it lost no event, so this run proves nothing")
    return faults
