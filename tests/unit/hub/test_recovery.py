"""Pasts that become the present: the hub over the real local engine, with clients that read when they are told to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from fanfare.engine import interface
from fanfare.engine.local import engine
from fanfare.hub import connections, event_frames, recovery
from fanfare.hub import hub as hubs
from tests.harness import waiting
from tests.unit.hub.doubles import APP, Client

KEPT = interface.Retention(size=10_000, seconds=60)
LONG = interface.RecoveryRequest(max_entries=10_000, max_bytes=64 * 1024 * 1024)


class Deployment:
    """One worker: its hub, and a publisher."""

    def __init__(self, hub: hubs.Hub) -> None:
        self.hub = hub
        self._sockets = 0

    def client(self, *, positions: bool = False) -> Client:
        self._sockets += 1
        client = Client(self.hub, f"1.{self._sockets}")
        client.connection.positions = positions
        return client

    async def publish(self, *numbers: int, channel: str = "kept", pad: int = 0, **more: Any) -> interface.Position:
        publications = [
            interface.Publication(
                APP, channel, event_frames.event("n", channel, str(number) + " " * pad), retention=KEPT, **more
            )
            for number in numbers
        ]
        receipts = await self.hub.publish(publications)
        position = receipts[-1].position
        assert position is not None
        return position

    def subscribe(
        self,
        client: Client,
        history: interface.RecoveryRequest,
        *,
        channel: str = "kept",
        lost: Callable[[str], None] | None = None,
        **more: Any,
    ) -> None:
        def ready(answer: interface.SubscribeResult | interface.Refused) -> None:
            client.answers.append((channel, answer))
            client.connection.send(b'{"event":"subscribed"}')

        past = connections.Past(history, lost=lost, **more)
        self.hub.subscribe(client.connection, channel, ready, past=past)


@pytest.fixture
async def deployment(tmp_path: Path) -> AsyncIterator[Deployment]:
    hub = hubs.Hub(engine.LocalEngine(tmp_path / "engine"))
    await hub.start()
    yield Deployment(hub)
    await hub.stop()


def after(position: interface.Position, **more: Any) -> interface.RecoveryRequest:
    return interface.RecoveryRequest(after=position, max_entries=10_000, max_bytes=64 * 1024 * 1024, **more)


def numbers(client: Client, channel: str = "kept") -> list[int]:
    """What it got on a channel, after the answer: nothing before it."""
    texts = [json.loads(body) for body in client.got]
    assert all(text["event"] == "subscribed" for text in texts[:1])
    return [int(text["data"]) for text in texts if text.get("channel") == channel and text["event"] == "n"]


async def until(condition: Callable[[], object], within: float = 5) -> None:
    async def look() -> object:
        return condition()

    await waiting.until_async(look, within, "the condition")


async def test_a_client_that_comes_back_gets_what_it_missed_and_what_follows(deployment: Deployment) -> None:
    position = await deployment.publish(1)
    await deployment.publish(2, 3)
    client = deployment.client()
    publishing = asyncio.ensure_future(asyncio.gather(*(deployment.publish(number) for number in range(4, 100))))
    while not publishing.done():
        if not client.answers and not client.connection.subscriptions:
            deployment.subscribe(client, after(position))
        await asyncio.sleep(0)
    await until(lambda: len(numbers(client)) >= 98)
    assert numbers(client) == list(range(2, 100))
    assert deployment.hub.position(client.connection, "kept") == interface.Position(position.epoch, 99)


async def test_subscribing_at_any_moment_of_a_stream_loses_and_repeats_nothing(deployment: Deployment) -> None:
    """A hundred clients, each with its own position and its own moment."""
    position = await deployment.publish(1)
    clients: list[Client] = []
    for number in range(2, 102):
        await deployment.publish(number)
        client = deployment.client()
        clients.append(client)
        deployment.subscribe(client, after(interface.Position(position.epoch, 1 + number // 2)))
        if number % 3 == 0:
            await asyncio.sleep(0)
    await until(lambda: all(client.answers for client in clients))
    await deployment.publish(102)
    for number, client in enumerate(clients, 2):
        await until(lambda client=client: numbers(client)[-1:] == [102])
        assert numbers(client) == list(range(2 + number // 2, 103))


async def test_a_client_does_not_get_back_what_it_sent_itself(deployment: Deployment) -> None:
    position = await deployment.publish(1)
    await deployment.publish(2, exclude="9.9")
    await deployment.publish(3, exclude="8.8")
    await deployment.publish(4)
    client = deployment.client()
    deployment.subscribe(client, after(position), sent_as=frozenset({"9.9"}))
    await until(lambda: client.answers)
    assert numbers(client) == [3, 4]


async def test_offsets_and_replays_are_marked_for_those_who_asked(deployment: Deployment) -> None:
    position = await deployment.publish(1)
    await deployment.publish(2)
    plain, positioned = deployment.client(), deployment.client(positions=True)
    for client in (plain, positioned):
        deployment.subscribe(client, after(position))
    await until(lambda: plain.answers and positioned.answers)
    await deployment.publish(3)
    await until(lambda: len(plain.got) == len(positioned.got) == 3)
    assert plain.got[1:] == [event_frames.event("n", "kept", "2"), event_frames.event("n", "kept", "3")]
    assert [json.loads(body) for body in positioned.got[1:]] == [
        {"event": "n", "channel": "kept", "data": "2", "offset": 2, "replay": True},
        {"event": "n", "channel": "kept", "data": "3", "offset": 3},
    ]


async def test_a_long_replay_waits_for_its_reader_and_ends_in_the_present(deployment: Deployment) -> None:
    position = await deployment.publish(1)
    await deployment.publish(*range(2, 1202), pad=1000)
    client = deployment.client()
    deployment.subscribe(client, after(position))
    client.writer.waiting = recovery.PACE_BYTES + 1
    await until(lambda: client.answers)
    assert numbers(client) == [], "what waits for the client already goes first"
    for number in range(1202, 1212):
        client.writer.waiting = 0
        await deployment.publish(number)
        client.writer.waiting = recovery.PACE_BYTES + 1
        await asyncio.sleep(0.01)
    client.writer.waiting = 0
    await until(lambda: numbers(client)[-1:] == [1211])
    await deployment.publish(1212)
    await until(lambda: numbers(client)[-1:] == [1212])
    assert numbers(client) == list(range(2, 1213))
    [(_, answer)] = client.answers
    assert isinstance(answer, interface.SubscribeResult)
    assert answer.replayed is not None
    assert (answer.replayed.count, answer.replayed.reason) == (1200, None)


async def test_what_is_not_kept_reaches_a_client_that_is_catching_up(deployment: Deployment) -> None:
    position = await deployment.publish(1)
    await deployment.publish(2)
    client = deployment.client()
    client.writer.waiting = recovery.PACE_BYTES + 1
    deployment.subscribe(client, after(position))
    await until(lambda: client.answers)
    await deployment.hub.publish(
        [interface.Publication(APP, "kept", event_frames.event("client-x", "kept", "passing"))]
    )
    await until(lambda: any(b"passing" in body for body in client.got))
    client.writer.waiting = 0
    await until(lambda: numbers(client) == [2])


async def test_who_leaves_while_catching_up_gets_no_more(deployment: Deployment) -> None:
    position = await deployment.publish(1)
    await deployment.publish(2)
    client = deployment.client()
    client.writer.waiting = recovery.PACE_BYTES + 1
    deployment.subscribe(client, after(position))
    await until(lambda: client.answers)
    client.unsubscribe("kept")
    client.writer.waiting = 0
    await deployment.publish(3)
    probe = deployment.client()
    deployment.subscribe(probe, after(position))
    await until(lambda: probe.answers and numbers(probe) == [2, 3])
    assert numbers(client) == []
    assert deployment.hub.statistics()["channels.now"] == 1


async def test_a_replay_that_cannot_be_finished_says_so_and_goes_on_in_the_present(deployment: Deployment) -> None:
    short = interface.Retention(size=20, seconds=60)

    async def publish(number: int) -> interface.Position:
        body = event_frames.event("n", "kept", str(number))
        [receipt] = await deployment.hub.publish([interface.Publication(APP, "kept", body, retention=short)])
        assert receipt.position is not None
        return receipt.position

    position = await publish(1)
    for number in range(2, 12):
        await publish(number)
    client = deployment.client()
    client.writer.waiting = recovery.PACE_BYTES + 1
    reasons: list[str] = []
    deployment.subscribe(client, after(position), lost=reasons.append)
    await until(lambda: client.answers)
    for number in range(12, 40):
        await publish(number)
    client.writer.waiting = 0
    await until(lambda: reasons == ["position_expired"])
    await publish(40)
    await until(lambda: numbers(client) == [40])
    assert deployment.hub.statistics()["replays.lost.position_expired"] == 1


async def test_who_never_reads_its_replay_is_let_go(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "STALL_S", 0.05)
    position = await deployment.publish(1)
    await deployment.publish(2)
    client = deployment.client()
    client.writer.waiting = recovery.PACE_BYTES + 1
    deployment.subscribe(client, after(position))
    await until(lambda: client.writer.closed is not None)
    assert client.writer.closed is not None
    assert client.writer.closed[0] == 4100


async def test_a_refused_past_is_told_and_the_present_follows(deployment: Deployment) -> None:
    await deployment.publish(1, 2, 3)
    client = deployment.client()
    deployment.subscribe(client, after(interface.Position("elsewhere", 1)))
    await until(lambda: client.answers)
    [(_, answer)] = client.answers
    assert isinstance(answer, interface.SubscribeResult)
    assert answer.replayed is not None
    assert answer.replayed.reason == "epoch_changed"
    await deployment.publish(4)
    await until(lambda: numbers(client) == [4])


async def test_a_rewind_comes_before_the_present(deployment: Deployment) -> None:
    await deployment.publish(1, 2, 3)
    client = deployment.client()
    deployment.subscribe(client, interface.RecoveryRequest(rewind=interface.Rewind(count=2, seconds=0)))
    await until(lambda: client.answers)
    await deployment.publish(4)
    await until(lambda: numbers(client) == [2, 3, 4])
