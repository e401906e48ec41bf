"""Recovery: the hub over the real local engine, with clients that read when a test lets them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from fanfare.engine import interface
from fanfare.engine.local import engine, recovery
from fanfare.hub import attempts, connections, event_frames, history_pages, pacing
from fanfare.hub import hub as hubs
from tests.harness import waiting
from tests.unit.hub.doubles import APP, Client

KEPT = interface.Retention(size=10_000, seconds=60)
LONG_REWIND = interface.RecoveryRequest(rewind=interface.Rewind(count=512, seconds=0))


class Deployment:
    """One worker: its hub, and a publisher."""

    def __init__(self, hub: hubs.Hub) -> None:
        self.hub = hub
        self._sockets = 0

    def client(self, *, with_offsets: bool = False) -> Client:
        self._sockets += 1
        return Client(self.hub, f"1.{self._sockets}", with_offsets=with_offsets)

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
        earlier_sockets: frozenset[str] = frozenset(),
        **more: Any,
    ) -> None:
        client.subscribe(channel, recovery=connections.Recovery(history, earlier_sockets), **more)


@pytest.fixture
async def deployment(tmp_path: Path) -> AsyncIterator[Deployment]:
    hub = hubs.Hub(engine.LocalEngine(tmp_path / "engine"))
    await hub.start()
    yield Deployment(hub)
    await hub.stop()


def after(position: interface.Position, **more: Any) -> interface.RecoveryRequest:
    return interface.RecoveryRequest(after=position, max_entries=10_000, max_bytes=64 * 1024 * 1024, **more)


def numbers(client: Client, channel: str = "kept") -> list[int]:
    """The events that it got on a channel; the answer came before them."""
    texts = [json.loads(body) for body in client.got]
    assert all(text["event"] == "subscribed" for text in texts[:1])
    return [int(text["data"]) for text in texts if text.get("channel") == channel and text["event"] == "n"]


async def until(condition: Callable[[], object], within: float = 30) -> None:
    async def look() -> object:
        return condition()

    await waiting.until_async(look, within, "the condition")


async def test_recovered_entries_come_before_the_following_ones_without_a_gap(deployment: Deployment) -> None:
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
    assert client.position("kept") == interface.Position(position.epoch, 99)


async def test_recovery_at_any_moment_of_a_stream_loses_and_repeats_nothing(deployment: Deployment) -> None:
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


async def test_own_events_of_earlier_sockets_are_not_recovered(deployment: Deployment) -> None:
    position = await deployment.publish(1)
    await deployment.publish(2, exclude="9.9")
    await deployment.publish(3, exclude="8.8")
    await deployment.publish(4)
    client = deployment.client()
    deployment.subscribe(client, after(position), earlier_sockets=frozenset({"9.9"}))
    await until(lambda: client.answers)
    assert numbers(client) == [3, 4]


async def test_offset_and_replay_are_set_for_connections_with_offsets(deployment: Deployment) -> None:
    position = await deployment.publish(1)
    await deployment.publish(2)
    plain, positioned = deployment.client(), deployment.client(with_offsets=True)
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


async def test_long_recovery_is_paced_by_its_reader_and_ends_live(deployment: Deployment) -> None:
    position = await deployment.publish(1)
    await deployment.publish(*range(2, 1202), pad=1000)
    client = deployment.client()
    deployment.subscribe(client, after(position))
    client.writer.waiting = pacing.PACE_BYTES + 1
    await until(lambda: client.answers)
    assert numbers(client) == [], "what waits for the client already goes first"
    for number in range(1202, 1212):
        client.writer.waiting = 0
        await deployment.publish(number)
        client.writer.waiting = pacing.PACE_BYTES + 1
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


async def test_entries_without_an_offset_reach_a_subscription_that_catches_up(deployment: Deployment) -> None:
    position = await deployment.publish(1)
    await deployment.publish(2)
    client = deployment.client()
    client.writer.waiting = pacing.PACE_BYTES + 1
    deployment.subscribe(client, after(position))
    await until(lambda: client.answers)
    await deployment.hub.publish(
        [interface.Publication(APP, "kept", event_frames.event("client-x", "kept", "passing"))]
    )
    await until(lambda: any(b"passing" in body for body in client.got))
    client.writer.waiting = 0
    await until(lambda: numbers(client) == [2])


async def test_unsubscribe_while_catching_up_ends_the_recovery(deployment: Deployment) -> None:
    position = await deployment.publish(1)
    await deployment.publish(2)
    client = deployment.client()
    client.writer.waiting = pacing.PACE_BYTES + 1
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


async def test_recovery_that_breaks_off_is_reported_and_new_events_follow(deployment: Deployment) -> None:
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
    client.writer.waiting = pacing.PACE_BYTES + 1
    deployment.subscribe(client, after(position))
    await until(lambda: client.answers)
    for number in range(12, 40):
        await publish(number)
    client.writer.waiting = 0
    await until(lambda: client.lost == ["position_expired"])
    await publish(40)
    await until(lambda: numbers(client) == [40])
    assert deployment.hub.statistics()["recoveries.lost.position_expired"] == 1


async def test_reader_that_stalls_during_its_recovery_is_disconnected_with_4100(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pacing, "STALL_S", 0.05)
    position = await deployment.publish(1)
    await deployment.publish(2)
    client = deployment.client()
    client.writer.waiting = pacing.PACE_BYTES + 1
    deployment.subscribe(client, after(position))
    await until(lambda: client.writer.closed is not None)
    assert client.writer.closed is not None
    assert client.writer.closed[0] == 4100


class AwayEngine(engine.LocalEngine):
    """Refuses to read further parts of a history while `is_away`."""

    is_away = False

    def attach(self, wanted: interface.SubscribeRequest, ready: interface.Ready) -> None:
        if self.is_away and wanted.history is not None and wanted.history.continued:
            ready(interface.Refused("engine_unavailable", "the store is away"))
        else:
            super().attach(wanted, ready)


async def interrupted(hub: hubs.Hub, store: AwayEngine) -> tuple[Deployment, Client, interface.Position]:
    """A client whose recovery waits for a store that is away."""
    deployment = Deployment(hub)
    position = await deployment.publish(1)
    await deployment.publish(*range(2, 401), pad=100)
    client = deployment.client()
    client.writer.waiting = pacing.PACE_BYTES + 1
    deployment.subscribe(client, after(position))
    await until(lambda: client.answers)
    store.is_away = True
    client.writer.waiting = 0
    await until(lambda: hub.counters["subscribes.repeated"])
    return deployment, client, position


async def test_recovery_goes_on_when_the_store_is_back(tmp_path: Path) -> None:
    store = AwayEngine(tmp_path / "engine")
    hub = hubs.Hub(store)
    await hub.start()
    deployment, client, _ = await interrupted(hub, store)
    await deployment.publish(401)
    assert numbers(client) == []
    store.is_away = False
    await until(lambda: numbers(client)[-1:] == [401])
    assert numbers(client) == list(range(2, 402))
    assert (client.lost, client.writer.closed) == ([], None)
    await hub.stop()


async def test_recovery_without_its_store_ends_with_4100_and_reports_no_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "REPEATED_S", 0.5)
    store = AwayEngine(tmp_path / "engine")
    hub = hubs.Hub(store)
    await hub.start()
    deployment, client, position = await interrupted(hub, store)
    await until(lambda: client.writer.closed is not None)
    assert client.writer.closed is not None
    assert client.writer.closed[0] == 4100
    assert client.lost == []
    assert hub.statistics()["recoveries.interrupted"] == 1
    assert hub.statistics()["recoveries.now"] == 0
    store.is_away = False
    back = deployment.client()
    deployment.subscribe(back, after(position))
    await until(lambda: len(numbers(back)) == 399)
    await hub.stop()


async def test_refused_recovery_is_reported_and_new_events_follow(deployment: Deployment) -> None:
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


async def test_rewind_comes_before_new_events(deployment: Deployment) -> None:
    await deployment.publish(1, 2, 3)
    client = deployment.client()
    deployment.subscribe(client, interface.RecoveryRequest(rewind=interface.Rewind(count=2, seconds=0)))
    await until(lambda: client.answers)
    await deployment.publish(4)
    await until(lambda: numbers(client) == [2, 3, 4])


# -- a second subscribe during a recovery ------------------------------------------------------------------------------

HOW = [
    pytest.param({}, {}, id="resume"),
    pytest.param({"rewind": interface.Rewind(count=400, seconds=0)}, {}, id="rewind"),
    pytest.param({}, {"user_id": "ann"}, id="presence"),
    pytest.param({}, {"cached": True}, id="cache channel"),
    pytest.param({}, {"announce": True}, id="subscription count"),
]


@pytest.mark.parametrize("with_offsets", [False, True])
@pytest.mark.parametrize(("request_", "more"), HOW)
async def test_second_subscribe_during_a_recovery_changes_nothing_but_its_answer(
    deployment: Deployment, request_: dict[str, Any], more: dict[str, Any], with_offsets: bool
) -> None:
    channel = "presence-kept" if "user_id" in more else "kept"
    position = await deployment.publish(1, channel=channel)
    await deployment.publish(*range(2, 401), channel=channel, pad=100)
    client = deployment.client(with_offsets=with_offsets)
    client.writer.waiting = pacing.PACE_BYTES + 1
    history = LONG_REWIND if request_ else after(position)
    first = 1 if request_ else 2
    deployment.subscribe(client, history, channel=channel, **more)
    await until(lambda: client.answers)
    assert client.state(channel) is connections.State.CATCHING_UP
    client.subscribe(channel, **more)
    await until(lambda: client.refreshed_answers)
    assert client.refreshed_answers[0][0] is connections.State.CATCHING_UP
    await deployment.publish(*range(401, 405), channel=channel)
    assert client.state(channel) is connections.State.CATCHING_UP
    assert numbers(client, channel) == []
    assert client.position(channel) == interface.Position(position.epoch, first - 1), "nothing was delivered"
    client.writer.waiting = 0
    await until(lambda: client.state(channel) is connections.State.LIVE)
    await deployment.publish(405, channel=channel)
    await until(lambda: numbers(client, channel)[-1:] == [405])
    assert numbers(client, channel) == list(range(first, 406))
    assert client.position(channel) == interface.Position(position.epoch, 405)


async def test_unsubscribe_after_a_second_subscribe_ends_a_recovery(deployment: Deployment) -> None:
    position = await deployment.publish(1)
    await deployment.publish(2, 3)
    client = deployment.client()
    client.writer.waiting = pacing.PACE_BYTES + 1
    deployment.subscribe(client, after(position))
    await until(lambda: client.answers)
    client.subscribe("kept")
    client.unsubscribe("kept")
    client.writer.waiting = 0
    await deployment.publish(4)
    await deployment.hub.publish([interface.Publication(APP, "kept", event_frames.event("x", "kept", "not kept"))])
    probe = deployment.client()
    deployment.subscribe(probe, after(position))
    await until(lambda: numbers(probe) == [2, 3, 4])
    assert [json.loads(body)["event"] for body in client.got] == ["subscribed", "subscribed"]
    assert deployment.hub.statistics()["recoveries.now"] == 0


async def test_recovery_starts_at_the_requested_position(deployment: Deployment) -> None:
    position = await deployment.publish(1)
    await deployment.publish(2, 3)
    starts = {}
    for name, history in (
        ("resume", after(position)),
        ("rewind", interface.RecoveryRequest(rewind=interface.Rewind(count=2, seconds=0))),
        ("neither", interface.RecoveryRequest()),
    ):
        client = deployment.client()
        deployment.subscribe(client, history)
        await until(lambda client=client: client.answers)
        starts[name] = client.subscription("kept").since
    assert starts == {"resume": 1, "rewind": 1, "neither": 3}


async def test_recovery_of_a_cache_channel_that_breaks_off_brings_the_newest_state(deployment: Deployment) -> None:
    short = interface.Retention(size=20, seconds=60)

    async def publish(number: int) -> interface.Position:
        body = event_frames.event("n", "cache-kept", str(number))
        publication = interface.Publication(APP, "cache-kept", body, retention=short, cache_seconds=60)
        [receipt] = await deployment.hub.publish([publication])
        assert receipt.position is not None
        return receipt.position

    position = await publish(1)
    await publish(2)
    client = deployment.client()
    client.writer.waiting = pacing.PACE_BYTES + 1
    deployment.subscribe(client, after(position), channel="cache-kept", cached=True)
    await until(lambda: client.answers)
    for number in range(3, 40):
        await publish(number)
    client.writer.waiting = 0
    await until(lambda: client.lost)
    assert client.cached == [event_frames.event("n", "cache-kept", "39")]


NEWER = max(interface.Kind) + 1


async def test_recovery_without_an_entry_of_a_newer_release_is_not_complete(deployment: Deployment) -> None:
    position = await deployment.publish(1)
    await deployment.publish(2, kind=NEWER)
    beyond = await deployment.publish(3)
    early, late = deployment.client(), deployment.client()
    deployment.subscribe(early, after(position))
    deployment.subscribe(late, after(interface.Position(position.epoch, 2)))
    await until(lambda: early.answers and late.answers)
    [(_, answer)] = early.answers
    assert isinstance(answer, interface.SubscribeResult)
    assert answer.replayed == interface.RecoveryResult(beyond, reason="engine_unavailable", complete=True)
    assert (numbers(early), numbers(late)) == ([], [3])
    await deployment.publish(4)
    await until(lambda: numbers(early) == [4] and numbers(late) == [3, 4])
    assert deployment.hub.statistics()["entries.unknown"] == 1


async def test_later_chunk_with_an_entry_of_a_newer_release_ends_the_recovery(deployment: Deployment) -> None:
    position = await deployment.publish(1)
    await deployment.publish(*range(2, 702))
    await deployment.publish(702, kind=NEWER)
    client = deployment.client()
    deployment.subscribe(client, after(position))
    await until(lambda: client.lost)
    assert client.lost == ["engine_unavailable"]
    assert numbers(client) == list(range(2, 514)), "the first chunk"


async def test_rewind_and_history_omit_entries_of_a_newer_release(deployment: Deployment) -> None:
    await deployment.publish(1)
    await deployment.publish(2, kind=NEWER)
    await deployment.publish(3)
    client = deployment.client()
    deployment.subscribe(client, LONG_REWIND)
    await until(lambda: client.answers)
    assert numbers(client) == [1, 3]
    page = await history_pages.read(deployment.hub.engine, APP, "kept", history_pages.Range(newest_first=False))
    assert [event.offset for event in page.events] == [1, 3]


async def test_rewind_that_waits_goes_on_beyond_a_chunk_of_a_newer_release(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    await deployment.publish(1)
    await deployment.publish(*range(2, 7), kind=NEWER)
    await deployment.publish(7)
    client = deployment.client()
    client.writer.waiting = pacing.PACE_BYTES + 1
    deployment.subscribe(client, LONG_REWIND)
    await until(lambda: client.answers)
    assert client.state("kept") is connections.State.CATCHING_UP
    monkeypatch.setattr(recovery, "CHUNK_ENTRIES", 2)
    client.writer.waiting = 0
    await until(lambda: client.state("kept") is connections.State.LIVE)
    await deployment.publish(8)
    await until(lambda: numbers(client) == [1, 7, 8])
