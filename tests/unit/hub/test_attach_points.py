"""A subscribe races with publications at every point where another step can run in between.

The hub, the worker, the reader and the writer are real, over a real log. Only the scheduling is replaced: the event
loop runs one callback at a time, when the test calls it, and the writer runs in the caller's thread. Every step is
therefore a choice of the test, which tries all orders.
"""

from __future__ import annotations

import asyncio
import collections
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from fanfare.engine import interface
from fanfare.engine.local import appends, commit_queue, engine, log_file, paths, reader, recovery, transactions, worker
from fanfare.hub import connections, event_frames
from fanfare.hub import hub as hubs
from tests.unit.hub.doubles import APP, Client

KEPT = interface.Retention(size=100, seconds=600)
BEFORE = 3  # events in the stream before the client comes, of which it has seen the first
MEANWHILE = 2  # that are published while it comes


class Choices:
    """One order of things: at each point the number of what was chosen there."""

    def __init__(self, path: Sequence[int]) -> None:
        self._path = list(path)
        self._widths: list[int] = []

    def choose(self, options: Sequence[str]) -> str:
        at = len(self._widths)
        if at == len(self._path):
            self._path.append(0)
        self._widths.append(len(options))
        return options[self._path[at]]

    def next_path(self) -> list[int] | None:
        """The order that comes after this one; None after the last."""
        path = self._path[: len(self._widths)]
        while path:
            if path[-1] + 1 < self._widths[len(path) - 1]:
                return [*path[:-1], path[-1] + 1]
            path.pop()
        return None


def all_orders() -> Iterator[Choices]:
    path: list[int] | None = []
    while path is not None:
        choices = Choices(path)
        yield choices
        path = choices.next_path()


class StepLoop(asyncio.AbstractEventLoop):
    """Runs one callback at a time, in the order in which they came, as an event loop does; a timer counts as due."""

    def __init__(self) -> None:
        self._ready: collections.deque[asyncio.Handle] = collections.deque()
        self._now_s = 0.0

    def call_soon(self, callback: Callable[..., object], *args: object, context: Any = None) -> asyncio.Handle:
        self._ready.append(asyncio.Handle(callback, args, self, context))  # type: ignore[arg-type]
        return self._ready[-1]

    call_soon_threadsafe = call_soon  # type: ignore[assignment]

    def call_at(
        self, when: float, callback: Callable[..., object], *args: object, context: Any = None
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)  # type: ignore[arg-type]
        self._ready.append(handle)
        return handle

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: object, context: Any = None
    ) -> asyncio.TimerHandle:
        return self.call_at(delay, callback, *args, context=context)

    def create_task(self, coroutine: Any, **_: Any) -> asyncio.Task[Any]:
        return asyncio.Task(coroutine, loop=self)

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """It is passed over when its turn comes."""

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def time(self) -> float:
        """A second later each time: nothing here happens often."""
        self._now_s += 1.0
        return self._now_s

    def get_debug(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        raise context["exception"]

    @property
    def is_idle(self) -> bool:
        return not self._ready

    def step(self) -> None:
        handle = self._ready.popleft()
        if not handle.cancelled():
            handle._run()


class StepWriter(commit_queue.CommitQueue):
    """Writes one group when the test calls `step`."""

    def submit(self, operation: transactions.WriteOp) -> None:
        self._append(operation)

    @property
    def is_idle(self) -> bool:
        return not self._pending

    def step(self) -> None:
        self._turn(tries=None)


def log_of(where: paths.LogPaths) -> log_file.LogFile:
    return log_file.LogFile(where, full_sync=False, max_bytes=engine.LOG_MAX_BYTES)


class Deployment:
    """A worker, and another process that publishes to the same log."""

    def __init__(self, folder: Path) -> None:
        self.loop = StepLoop()
        asyncio._set_running_loop(self.loop)
        where = paths.LogPaths(folder)
        where.prepare()
        self._elsewhere = StepWriter(log_of(where), logged=lambda _added, _on_loop: None)
        engine_ = engine.LocalEngine(folder)
        self.hub = hubs.Hub(engine_)
        self.writer = engine_._commits = StepWriter(log_of(where), logged=self._logged)
        engine_._worker = self._worker = worker.Worker(
            where,
            self.writer,
            self.hub._deliver,
            self.hub._on_gap,
            log_seconds=20,
            append_timeout=5,
        )
        self.channel = ""
        self.published = 0
        self._clients = 0

    def _logged(self, added: transactions.Added, _on_loop: bool) -> None:
        self._worker.scheduler.logged(added)

    def open(self) -> None:
        self._worker._lock.acquire()
        self.writer.log.worker = self._worker.id
        touch = transactions.Barrier(self.loop)
        self.writer.submit(touch)
        self.writer.step()
        self._worker.reader.follow(touch.top)
        self.settle()

    def close(self) -> None:
        self._worker.reader.close()
        self._worker.release()
        for one in (self.writer, self._elsewhere):
            one.log.close(last=False)
        asyncio._set_running_loop(None)

    def begin(self, channel: str) -> interface.Position:
        """A stream with some events in it; where the first of them stands."""
        self.channel, self.published = channel, 0
        for _ in range(BEFORE):
            self.publish()
        self.settle()
        answers: list[Any] = []
        wanted = interface.SubscribeRequest(APP, channel, durable=False, history=interface.RecoveryRequest())
        self.hub.engine.attach(wanted, answers.append)
        return interface.Position(answers[0].replayed.position.epoch, 1)

    def client(self) -> Client:
        self._clients += 1
        client = Client(self.hub, f"1.{self._clients}")
        self.settle()
        return client

    def publish(self) -> None:
        """Committed by another process, whose poke is lost."""
        self.published += 1
        body = event_frames.event("n", self.channel, str(self.published))
        publication = interface.Publication(APP, self.channel, body, retention=KEPT)
        self._elsewhere.submit(appends.BlockingAppend([publication]))
        self._elsewhere.step()

    def advance(self) -> None:
        """A poke, or the timer."""
        self._worker.reader.advance()

    def settle(self) -> None:
        """Until nothing is left to do."""
        while not (self.loop.is_idle and self.writer.is_idle):
            if self.loop.is_idle:
                self.writer.step()
            else:
                self.loop.step()
        self.advance()
        while not self.loop.is_idle:
            self.loop.step()


def subscribe(
    deployment: Deployment,
    client: Client,
    recovery: connections.Recovery | None,
    member: interface.Member | None,
) -> None:
    deployment.hub.subscribe(client.connection, deployment.channel, member=member, recovery=recovery)


def numbers(client: Client) -> list[int]:
    texts = [json.loads(body) for body in client.got]
    assert texts[0]["event"] == "subscribed", "nothing comes before the answer"
    return [int(text["data"]) for text in texts if text["event"] == "n"]


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    deployment = Deployment(tmp_path / "engine")
    deployment.open()
    yield deployment
    deployment.close()


def follow(deployment: Deployment, choices: Choices, come: Callable[[], None], meanwhile: int, subscribes: int) -> None:
    """Publish and come in one of the possible orders, until all is done."""
    left = {"publish": meanwhile, "come": subscribes, "poke": 1}
    does = {
        "publish": deployment.publish,
        "come": come,
        "poke": deployment.advance,
        "write": deployment.writer.step,
        "run": deployment.loop.step,
    }
    while left["publish"] or left["come"]:
        options = [name for name, count in left.items() if count]
        options += ["write"] * (not deployment.writer.is_idle)
        options += ["run"] * (not deployment.loop.is_idle)
        chosen = choices.choose(options)
        if chosen in left:
            left[chosen] -= 1
        does[chosen]()
    # What was under way comes to its end in every order too.
    while not (deployment.writer.is_idle and deployment.loop.is_idle):
        options = ["write"] * (not deployment.writer.is_idle) + ["run"] * (not deployment.loop.is_idle)
        does[choices.choose(options)]()
    deployment.settle()


def play(
    deployment: Deployment,
    history: Callable[[interface.Position], interface.RecoveryRequest | None],
    *,
    meanwhile: int = MEANWHILE,
    others: bool = False,
    member: bool = False,
    subscribes: int = 1,
) -> Iterator[Client]:
    """The client of every order, each on a channel of its own. `others`: the channel has a subscriber already.
    `member`: it is a presence channel. `subscribes`: how many times the client subscribes."""
    for order, choices in enumerate(all_orders()):
        seen = deployment.begin(f"kept-{order}")
        here = [deployment.client(), deployment.client()]
        if others:
            subscribe(deployment, here[1], None, None)
            deployment.settle()
        asked = history(seen)
        recovery = None if asked is None else connections.Recovery(asked)
        who = interface.Member("ann", "null") if member else None
        follow(
            deployment,
            choices,
            functools.partial(subscribe, deployment, here[0], recovery, who),
            meanwhile,
            subscribes,
        )
        assert deployment.published == BEFORE + meanwhile
        yield here[0]
        for client in here:
            deployment.hub.unsubscribe(client.connection, deployment.channel)
        deployment.settle()


def resume(seen: interface.Position) -> interface.RecoveryRequest:
    return interface.RecoveryRequest(after=seen)


def rewind(_: interface.Position) -> interface.RecoveryRequest:
    return interface.RecoveryRequest(rewind=interface.Rewind(count=100, seconds=0))


HOW = [
    pytest.param({}, id="first on the channel here"),
    pytest.param({"others": True}, id="others are on it"),
    pytest.param({"member": True}, id="as a member"),
]


MORE = [*HOW, pytest.param({"others": True, "meanwhile": 3}, id="others are on it, and more events come")]


@pytest.mark.parametrize("how", MORE)
@pytest.mark.parametrize(("history", "first"), [(resume, 2), (rewind, 1)])
def test_recovered_and_new_events_come_once_and_without_a_gap_in_every_order(
    deployment: Deployment, how: dict[str, Any], history: Callable[[interface.Position], Any], first: int
) -> None:
    orders = 0
    for client in play(deployment, history, **how):
        orders += 1
        assert numbers(client) == list(range(first, deployment.published + 1))
    assert orders > 80


@pytest.mark.parametrize("how", HOW)
def test_recovery_in_many_chunks_comes_once_and_without_a_gap_in_every_order(
    deployment: Deployment, how: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two chunks of a long replay everything else goes on, and each chunk is an attach of its own."""
    monkeypatch.setattr(recovery, "CHUNK_ENTRIES", 1)
    monkeypatch.setattr(recovery, "SHARED_SECONDS", 0.0)
    orders = 0
    for client in play(deployment, resume, **how):
        orders += 1
        assert numbers(client) == list(range(2, deployment.published + 1))
    assert orders > 100


@pytest.mark.parametrize("member", [False, True])
def test_second_subscribe_at_any_point_of_a_recovery_changes_nothing(
    deployment: Deployment, member: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "CHUNK_ENTRIES", 1)
    monkeypatch.setattr(recovery, "SHARED_SECONDS", 0.0)
    refreshed = set()
    for client in play(deployment, resume, member=member, subscribes=2, meanwhile=1):
        assert numbers(client) == list(range(2, deployment.published + 1))
        refreshed.update(state for state, _ in client.refreshed_answers)
    assert refreshed == {connections.State.CATCHING_UP, connections.State.LIVE}


@pytest.mark.parametrize("how", MORE)
def test_subscriber_without_recovery_gets_every_event_after_its_answer_in_every_order(
    deployment: Deployment, how: dict[str, Any]
) -> None:
    beginnings = set()
    for client in play(deployment, lambda _: None, **how):
        got = numbers(client)
        assert got == list(range(deployment.published + 1 - len(got), deployment.published + 1))
        beginnings.add(len(got))
    assert beginnings == set(range(how.get("meanwhile", MEANWHILE) + 1)), "the orders differ"


def test_going_live_before_the_reader_arrives_is_detected(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not all orders are harmless: what is read at once, and not where the tail stands, comes again."""

    def settle_at_once(self: Any, attachment: Any) -> None:
        attachment.ready(reader.Snapshot(self._connection, self.recovery).of(attachment.wanted))

    monkeypatch.setattr("fanfare.engine.local.reader.LogReader.settle", settle_at_once)
    assert any(numbers(client) != [2, 3, 4, 5] for client in play(deployment, resume, others=True))
