"""Signals, sent by real workers on one log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django import db
from django.contrib.auth.models import Group

from fanfare import signals
from fanfare.engine import interface
from fanfare.hub import event_frames
from fanfare.hub import hub as hubs
from fanfare.integration import signal_sender
from fanfare.jobs import declarations, log_consumer, runner
from fanfare.runtime.supervisor import State
from tests.harness import waiting

APP = "7"
Received = list[tuple[str, dict[str, Any]]]


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch) -> Iterator[Received]:
    """The signals that were sent: name and arguments."""
    received: Received = []
    receivers = []
    for name in ("connected", "disconnected", "joined", "left", "occupied", "vacated", "client_event"):

        def receive(_name: str = name, **arguments: Any) -> None:
            received.append(
                (_name, {key: value for key, value in arguments.items() if key not in ("signal", "sender")})
            )

        receivers.append((getattr(signals, name), receive))
        getattr(signals, name).connect(receive)
    yield received
    for signal, receive in receivers:
        signal.disconnect(receive)


Start = Callable[[], Any]
opened: list[str] = []  # consumers that have begun


@pytest.fixture(autouse=True)
def note_opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    enter = log_consumer.LogConsumer.__aenter__

    async def entered(self: log_consumer.LogConsumer) -> log_consumer.LogConsumer:
        consumer = await enter(self)
        opened.append(self._name)
        return consumer

    monkeypatch.setattr(log_consumer.LogConsumer, "__aenter__", entered)
    yield
    opened.clear()


@pytest.fixture
async def start(make_engine: Callable[[], interface.Engine]) -> AsyncIterator[Start]:
    """Start one more worker of this test's deployment."""
    started: list[tuple[runner.Runner, hubs.Hub]] = []

    async def one() -> tuple[runner.Runner, hubs.Hub]:
        hub = hubs.Hub(make_engine())
        await hub.start()
        worker = runner.Runner(hub, [signal_sender.SignalSender(hub).job()], declarations.Jobs())
        started.append((worker, hub))
        await worker.start()
        return worker, hub

    yield one
    for worker, hub in started:
        await worker.stop()
        await hub.stop()


async def running(*workers: tuple[runner.Runner, hubs.Hub]) -> tuple[runner.Runner, hubs.Hub]:
    """The worker that sends the signals, once one does and its cursor is there."""
    found: list[tuple[runner.Runner, hubs.Hub]] = []

    async def look() -> bool:
        found[:] = [one for one in workers if one[0].statuses[0].state is State.RUNNING]
        return bool(found) and bool(opened)

    await waiting.until_async(look, 10, "one worker sends")
    return found[0]


async def until(condition: Callable[[], object], what: str) -> None:
    async def look() -> object:
        return condition()

    await waiting.until_async(look, 10, what)


async def join(hub: hubs.Hub, channel: str, user_id: str, socket_id: str, info: str = "null") -> None:
    ready: asyncio.Future[object] = asyncio.get_running_loop().create_future()
    wanted = interface.SubscribeRequest(APP, channel, socket_id, member=interface.Member(user_id, info))
    hub.engine.attach(wanted, ready.set_result)
    assert isinstance(await ready, interface.SubscribeResult)


@pytest.mark.parametrize("make_engine", ["local", "postgres", "redis"], indirect=True)
async def test_each_signal_is_sent_once_in_the_deployment_and_in_order(received: Received, start: Start) -> None:
    one, two = await start(), await start()
    await running(one, two)
    for _, hub in (one, two):
        hub.engine.set_subscribers(APP, "presence-room", 1)
    await join(one[1], interface.USERS, "ann", "1.1")
    await join(one[1], "presence-room", "ann", "1.1", '{"name":"Ann"}')
    await join(two[1], "presence-room", "ann", "1.2", '{"name":"Ann"}')
    body = event_frames.event("client-said", "presence-room", {"text": "hi"}, "ann")
    event = interface.Publication(
        APP, "presence-room", body, kind=interface.Kind.CLIENT_EVENT, user_id="ann", exclude="1.1"
    )
    await one[1].engine.append([event, interface.Publication(APP, "presence-room", event_frames.event("e", "c", "1"))])
    for (_, hub), socket_id in ((one, "1.1"), (two, "1.2")):
        hub.engine.leave(APP, "presence-room", socket_id)
        hub.engine.set_subscribers(APP, "presence-room", 0)
    one[1].engine.leave(APP, interface.USERS, "1.1")
    await until(lambda: len(received) >= 7, "all signals")
    await asyncio.sleep(0.3)  # in which a repeated signal would come
    room = {"app": APP, "channel": "presence-room"}
    assert sorted(name for name, _ in received) == sorted(
        ["connected", "occupied", "joined", "client_event", "left", "vacated", "disconnected"]
    )
    by_name = dict(received)
    assert by_name["connected"] == by_name["disconnected"] == {"app": APP, "user_id": "ann"}
    assert by_name["joined"] == {**room, "user_id": "ann", "info": {"name": "Ann"}}
    assert by_name["left"] == {**room, "user_id": "ann"}
    assert by_name["occupied"] == by_name["vacated"] == room
    assert by_name["client_event"] == {
        **room,
        "event": "client-said",
        "data": {"text": "hi"},
        "user_id": "ann",
        "socket_id": "1.1",
    }
    order = [name for name, _ in received]
    assert order.index("joined") < order.index("client_event") < order.index("left")


@pytest.mark.parametrize("make_engine", ["local", "postgres", "redis"], indirect=True)
async def test_another_worker_continues_where_the_first_one_stopped(received: Received, start: Start) -> None:
    one = await start()
    await running(one)
    await join(one[1], "presence-a", "ann", "1.1")
    await until(lambda: [name for name, _ in received] == ["joined"], "the first signal")
    two = await start()
    await one[0].stop()
    await join(two[1], "presence-a", "bob", "1.2")  # while no worker or another one sends
    await until(lambda: len(received) >= 2, "the second signal")
    assert [arguments["user_id"] for _, arguments in received] == ["ann", "bob"]


@pytest.mark.django_db(transaction=True)
async def test_receivers_use_the_database_and_one_that_raises_does_not_stop_the_others(
    received: Received, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    open_before: list[bool] = []

    def broken(**_: Any) -> None:
        raise ZeroDivisionError

    def saving(user_id: str, **_: Any) -> None:
        open_before.append(db.connection.connection is not None)
        Group.objects.create(name=user_id)

    signals.joined.connect(broken)
    signals.joined.connect(saving)
    try:
        one = await start()
        _, hub = await running(one)
        for n, user in enumerate(("ann", "bob")):
            await join(hub, "presence-a", user, f"1.{n}")
            await until(lambda n=n: len(open_before) == n + 1, "the receiver")
        await until(lambda: hub.counters["signals.sent"] == 2, "both were sent")
    finally:
        signals.joined.disconnect(broken)
        signals.joined.disconnect(saving)
    assert open_before == [False, False]
    assert hub.counters["signals.failed"] == 2
    assert "ZeroDivisionError" in caplog.text
    assert [name for name, _ in received] == ["joined", "joined"]
    assert await Group.objects.acount() == 2


async def test_without_receivers_the_log_keeps_nothing(start: Start, tmp_path: Path) -> None:
    assert not signals.have_receivers()
    [worker, hub] = await start()
    await until(lambda: worker.statuses[0].state is State.DONE, "the cursor is dropped")
    await join(hub, "presence-a", "ann", "1.1")
    async with log_consumer.LogConsumer(hub.engine, signal_sender.NAME, signals.KINDS) as consumer:
        assert await consumer.next(0.1) == []  # a new one: it begins at the newest entry


def test_internal_channels_and_publications_send_no_signal() -> None:
    for channel in ("#server-to-user-1", interface.CONNECTIONS):
        assert signals.call_of(interface.Entry(1, interface.Kind.OCCUPIED, APP, channel, None, None, None, b"")) is None
    assert signals.call_of(interface.Entry(1, interface.Kind.EVENT, APP, "c", None, None, None, b"{}")) is None
