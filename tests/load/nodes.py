"""Three nodes on a shared store: `python -m tests.load.nodes postgres redis`. CPU as the processes account it.

Each node is an engine in a process of its own, without clients. The rows: a presence channel whose members are spread
over the nodes, the death of a node, events alone, in groups and without a subscriber, and many channels.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import multiprocessing
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any, Protocol

import psutil

from fanfare.engine import interface
from tests.harness import postgresql, redisserver

APP, ROOM = "1", "presence-room"
NODES = 3
GROUP = 100  # calls at the same time
BODY = b'{"event":"created","channel":"news","data":"%s"}' % (b"x" * 105)  # 150 bytes
KEPT = interface.Retention(1_000, 60)
ANSWER_S = 300.0
DEATH_S = 120.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", nargs="+", choices=sorted(STORES))
    parser.add_argument("--members", type=int, default=1_000)
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--channels", type=int, default=100_000)
    options = parser.parse_args()
    for name in options.store:
        print(f"\n### {name}\n", flush=True)
        with STORES[name]() as store, contextlib.ExitStack() as stack:
            nodes = [stack.enter_context(_node(store.url, number)) for number in range(NODES)]
            _measure_presence(nodes, options.members)
            _measure_events(store, nodes, options.events)
            _measure_channels(store, nodes, options.channels)
            _measure_death(nodes, options.members)


# -- the rows ----------------------------------------------------------------------------------------------------------


def _measure_presence(nodes: list[Node], members: int) -> None:
    began = time.monotonic()
    shares = [members // NODES + (number < members % NODES) for number in range(NODES)]
    for node, share in zip(nodes, shares, strict=True):
        node.ask("join", share)
    for node in nodes:
        node.answer()
    took = time.monotonic() - began
    asked = [node.call("members") for node in nodes]
    assert [found for found, _ in asked] == [members] * NODES, asked
    read_ms = max(1000 * seconds for _, seconds in asked)
    print(f"- {members:,} members joined in {took:.1f} s; each node reads the list in at most {read_ms:.0f} ms.")


def _measure_events(store: Store, nodes: list[Node], count: int) -> None:
    publisher, *followers = nodes
    for title, heard, group, kept, events in (
        ("alone, each awaited", True, 1, False, count // 10),
        ("grouped", True, GROUP, False, count),
        ("grouped, kept in a history", True, GROUP, True, count),
        ("grouped, without a subscriber", False, GROUP, False, count),
    ):
        for node in followers:
            node.call("hear", heard)
        before = store.cpu_s(), publisher.cpu_s(), sum(node.cpu_s() for node in followers)
        took = publisher.call("publish", events, group, kept)
        if heard:
            for node in followers:
                node.call("wait_for", events)
        time.sleep(1.0)  # readers without a subscriber move their positions
        after = store.cpu_s(), publisher.cpu_s(), sum(node.cpu_s() for node in followers)
        of_store, own, of_followers = (1e6 * (b - a) / events for a, b in zip(before, after, strict=True))
        print(
            f"- {events:,} events, {title}: {of_store:.1f} µs of the store, {own:.1f} µs of the publisher, "
            f"{of_followers / len(followers):.2f} µs of each of {len(followers)} other nodes, "
            f"{events / took:,.0f} events/s.",
            flush=True,
        )
    for node in followers:
        node.call("hear", False)


def _measure_channels(store: Store, nodes: list[Node], count: int) -> None:
    began, before = time.monotonic(), store.cpu_s()
    for node in nodes:
        node.ask("subscribe", count // NODES)
    for node in nodes:
        node.answer()
    took, used = time.monotonic() - began, store.cpu_s() - before
    total = count // NODES * NODES
    found, seconds = nodes[0].call("channels")
    assert found >= total, (found, total)
    before = store.cpu_s()
    time.sleep(5.0)
    idle = 100 * (store.cpu_s() - before) / 5.0
    print(
        f"- {total:,} channels, each with one subscriber: subscribed in {took:.1f} s with {1e6 * used / total:.0f} µs "
        f"of the store each. The list takes {seconds:.1f} s. The idle store uses "
        f"{idle:.1f} % of a core.",
        flush=True,
    )


def _measure_death(nodes: list[Node], members: int) -> None:
    dead, node, other = nodes
    left = members - (members // NODES + (members % NODES > 0))
    node.call("hear_room")
    dead.kill()
    began = time.monotonic()
    while (found := other.call("members")[0]) != left:
        assert time.monotonic() - began < DEATH_S, f"{found} members after {DEATH_S:g} s"
        time.sleep(0.1)
    took = time.monotonic() - began
    node.call("wait_for_removals", members - left)
    print(
        f"- A node with {members - left:,} members was killed: the list was true after {took:.1f} s, and another node "
        f"had reported all departures after {time.monotonic() - began:.1f} s.",
        flush=True,
    )


# -- stores ------------------------------------------------------------------------------------------------------------


class Store(Protocol):
    url: str

    def cpu_s(self) -> float: ...


class Postgres:
    def __init__(self, cluster: postgresql.Cluster) -> None:
        cluster.create("realtime")
        self.url = cluster.url("realtime")
        self._cluster = cluster
        self._seen: dict[int, float] = {}  # also of processes that have ended

    def cpu_s(self) -> float:
        for process in self._cluster._all(self._cluster._process):
            with contextlib.suppress(psutil.NoSuchProcess):
                self._seen[process.pid] = _cpu_s(process)
        return sum(self._seen.values())


class Redis:
    def __init__(self, server: redisserver.Server) -> None:
        self.url = server.url()
        self._server = server

    def cpu_s(self) -> float:
        with self._server.client() as client:
            found = client.info("cpu")
        return float(found["used_cpu_user"]) + float(found["used_cpu_sys"])


@contextlib.contextmanager
def _postgres() -> Iterator[Store]:
    with postgresql.running() as cluster:
        yield Postgres(cluster)


@contextlib.contextmanager
def _redis() -> Iterator[Store]:
    with redisserver.running() as server:
        yield Redis(server)


STORES: dict[str, Callable[[], contextlib.AbstractContextManager[Store]]] = {"postgres": _postgres, "redis": _redis}


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


# -- nodes -------------------------------------------------------------------------------------------------------------


class Node:
    """The process of one node, and the pipe to it."""

    def __init__(self, process: Any, pipe: Connection) -> None:
        self._process = process
        self._pipe = pipe
        self._counted = psutil.Process(process.pid)

    def ask(self, name: str, *arguments: Any) -> None:
        self._pipe.send((name, arguments))

    def answer(self) -> Any:
        assert self._pipe.poll(ANSWER_S), "a node does not answer"
        return self._pipe.recv()

    def call(self, name: str, *arguments: Any) -> Any:
        self.ask(name, *arguments)
        return self.answer()

    def cpu_s(self) -> float:
        return _cpu_s(self._counted)

    def kill(self) -> None:
        self._process.kill()
        self._process.join()


@contextlib.contextmanager
def _node(url: str, number: int) -> Iterator[Node]:
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=_run, args=(theirs, url, number), daemon=True)
    process.start()
    node = Node(process, mine)
    try:
        node.answer()
        yield node
    finally:
        node.kill()


def _run(pipe: Connection, url: str, number: int) -> None:
    import uvloop

    uvloop.run(_serve(pipe, url, number))


def _engine(url: str) -> interface.Engine:
    if url.startswith("redis"):
        from fanfare.engine.redis.engine import RedisEngine

        return RedisEngine(url)
    from fanfare.engine.postgres.engine import PostgresEngine

    return PostgresEngine(url)


async def _serve(pipe: Connection, url: str, number: int) -> None:
    work = Work(_engine(url), number)
    await work.engine.open(work.deliver, lambda reason, partition: None)
    pipe.send(None)
    while True:
        name, arguments = await asyncio.to_thread(pipe.recv)
        pipe.send(await getattr(work, name)(*arguments))


class Work:
    """What a node does when it is asked."""

    def __init__(self, engine: interface.Engine, number: int) -> None:
        self.engine = engine
        self.number = number
        self.read: collections.Counter[int] = collections.Counter()  # entries by kind

    def deliver(self, entries: Any) -> None:
        self.read.update(entry.kind for entry in entries)

    async def join(self, count: int) -> None:
        info = '{"name":"A member with a name"}'
        for start in range(0, count, GROUP):
            await asyncio.gather(
                *(
                    self._attached(
                        interface.SubscribeRequest(
                            APP,
                            ROOM,
                            f"{self.number}.{one}",
                            member=interface.Member(f"{self.number}-{one}", info),
                        )
                    )
                    for one in range(start, min(start + GROUP, count))
                )
            )

    async def subscribe(self, count: int) -> None:
        for start in range(0, count, GROUP):
            names = [f"channel-{self.number}-{one}" for one in range(start, min(start + GROUP, count))]
            for name in names:
                self.engine.set_subscribers(APP, name, 1)
            await asyncio.gather(*(self._attached(interface.SubscribeRequest(APP, name)) for name in names))

    async def _attached(self, wanted: interface.SubscribeRequest) -> None:
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.engine.attach(wanted, done.set_result)
        answer = await done
        assert isinstance(answer, interface.SubscribeResult), answer

    async def hear(self, on: bool) -> None:
        self.engine.set_subscribers(APP, "news", int(on))
        if on:
            await self._attached(interface.SubscribeRequest(APP, "news"))
        self.read.clear()

    async def hear_room(self) -> None:
        self.engine.set_subscribers(APP, ROOM, 1)
        await self._attached(interface.SubscribeRequest(APP, ROOM))
        self.read.clear()

    async def publish(self, count: int, group: int, kept: bool) -> float:
        """`group`: calls at the same time."""
        event = interface.Publication(APP, "news", BODY, retention=KEPT if kept else None)
        began = time.monotonic()
        for _ in range(0, count, group):
            await asyncio.gather(*(self.engine.append([event]) for _ in range(group)))
        return time.monotonic() - began

    async def wait_for(self, count: int) -> None:
        await self._wait(interface.Kind.EVENT, count)

    async def wait_for_removals(self, count: int) -> None:
        await self._wait(interface.Kind.MEMBER_REMOVED, count)

    async def _wait(self, kind: interface.Kind, count: int) -> None:
        async with asyncio.timeout(DEATH_S):
            while self.read[kind.value] < count:
                await asyncio.sleep(0.01)

    async def members(self) -> tuple[int, float]:
        began = time.monotonic()
        found = await self.engine.ask(lambda queries: len(queries.members(APP, ROOM)))
        return found, time.monotonic() - began

    async def channels(self) -> tuple[int, float]:
        began = time.monotonic()
        found = await self.engine.ask(lambda queries: len(queries.channels(APP)))
        return found, time.monotonic() - began


if __name__ == "__main__":
    main()
