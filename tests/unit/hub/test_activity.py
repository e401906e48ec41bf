"""What a hub reports of its connections, and of the events that it delivers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from fanfare.engine import interface
from fanfare.hub import activity, connections, pacing, traces
from tests.harness import waiting
from tests.unit.console.workers import Worker


@pytest.fixture
async def worker(tmp_path: Path) -> AsyncIterator[Worker]:
    worker = await Worker(tmp_path / "engine").start()
    yield worker
    await worker.hub.stop()


async def subscribe(
    worker: Worker, channel: str, connection: connections.Connection | None = None, **more: Any
) -> connections.Connection:
    """Subscribe and wait until the subscription is live."""
    connection = connection or worker.connect()
    worker.hub.subscribe(connection, channel, **more)

    async def is_live() -> bool:
        return connection.subscriptions[channel].state is connections.State.LIVE

    await waiting.until_async(is_live, 5, "the subscription is live")
    return connection


async def publish(worker: Worker, channel: str, **more: Any) -> traces.Key:
    [receipt] = await worker.hub.publish([interface.Publication("1", channel, b'{"event":"e"}', **more)])
    assert receipt.id
    return 0, receipt.id


async def recorded(worker: Worker, key: traces.Key) -> dict[str, Any]:
    async def found() -> dict[str, Any] | None:
        delivery = worker.hub.recorder.record(key).get("delivery")
        return delivery if delivery and "last_write" in delivery else None

    delivery = await waiting.until_async(found, 5, "the delivery is recorded")
    assert delivery is not None
    return delivery


async def test_tap_gets_the_life_of_a_connection(worker: Worker) -> None:
    items: list[activity.Item] = []
    worker.hub.activity.tap = items.append
    connection = worker.connect()
    worker.hub.subscribe(connection, "news")

    async def is_subscribed() -> bool:
        return len(items) > 1

    await waiting.until_async(is_subscribed, 5, "the subscription")
    worker.hub.unsubscribe(connection, "news")
    connection.close(4009, "No")
    assert [(item["type"], item.get("channel")) for item in items] == [
        (activity.OPENED, None),
        (activity.SUBSCRIBED, "news"),
        (activity.UNSUBSCRIBED, "news"),
        (activity.CLOSED, None),
    ]
    assert (items[-1]["code"], items[-1]["text"]) == (4009, "No")
    assert {item["socket"] for item in items} == {connection.socket_id}


async def test_client_that_left_is_not_reported_as_closed_by_the_server(worker: Worker) -> None:
    items: list[activity.Item] = []
    worker.hub.activity.tap = items.append
    worker.hub.disconnect(worker.connect())
    assert items[-1]["type"] == activity.CLOSED
    assert items[-1]["code"] is None


def test_newest_refusals_are_kept_without_a_tap() -> None:
    kept = activity.Activity()
    for number in range(activity.REFUSALS_KEPT + 5):
        kept.refused("subscription", "wrong_signature", f"no {number}", app="1", evidence={"auth": "x" * 9_999})
    assert len(kept.refusals) == activity.REFUSALS_KEPT
    assert kept.refusals[-1]["text"] == f"no {activity.REFUSALS_KEPT + 4}"
    assert len(kept.refusals[-1]["evidence"]["auth"]) == activity.EVIDENCE_CHARACTERS


async def test_every_event_of_a_traced_channel_is_recorded_with_its_sockets(worker: Worker) -> None:
    sender, reader = await subscribe(worker, "news"), await subscribe(worker, "news")
    worker.hub.recorder.trace("1", "news", 60)
    keys = [await publish(worker, "news", exclude=sender.socket_id) for _ in range(3)]
    for key in keys:
        delivery = await recorded(worker, key)
        assert delivery["written"] == 1
        assert delivery["excluded"] == sender.socket_id
        assert [one["socket"] for one in delivery["sockets"]] == [reader.socket_id]
        assert delivery["created"] <= delivery["read"] + 0.001
        assert delivery["read"] <= delivery["first_write"] <= delivery["last_write"]


async def test_slow_reader_is_named_in_the_record(worker: Worker) -> None:
    connection = await subscribe(worker, "news")
    worker.hub.recorder.trace("1", "news", 60)
    await recorded(worker, await publish(worker, "news"))
    connection.writer.full = True  # type: ignore[attr-defined]
    delivery = await recorded(worker, await publish(worker, "news"))
    assert delivery["slow"] == [connection.socket_id]
    assert delivery["written"] == 0


async def test_slow_reader_of_several_channels_is_named_in_the_record_of_each(worker: Worker) -> None:
    slow = await subscribe(worker, "b", await subscribe(worker, "a"))
    await subscribe(worker, "a")
    for channel in ("a", "b"):
        worker.hub.recorder.trace("1", channel, 60)
    slow.writer.full = True  # type: ignore[attr-defined]
    receipts = await worker.hub.publish([interface.Publication("1", name, b'{"event":"e"}') for name in ("a", "b")])
    found = [await recorded(worker, (0, receipt.id)) for receipt in receipts]
    assert [(one["slow"], one["written"]) for one in found] == [([slow.socket_id], 1), ([slow.socket_id], 0)]


async def test_record_counts_the_conflated_readers_without_the_excluded_one(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = await subscribe(worker, "cache-a"), await subscribe(worker, "cache-a")
    first.subscriptions["cache-a"].channel.is_cache = True
    worker.hub.recorder.trace("1", "cache-a", 60)
    monkeypatch.setattr(pacing, "is_behind", lambda connection: connection in (first, second))
    event = interface.Publication("1", "cache-a", b'{"event":"e"}')
    receipts = await worker.hub.publish([event, event._replace(exclude=first.socket_id)])
    found = [await recorded(worker, (0, receipt.id)) for receipt in receipts]
    assert [(one["conflated"], one["written"]) for one in found] == [(2, 0), (1, 0)]
    assert found[1]["excluded"] == first.socket_id
    assert [one["conflated_sockets"] for one in found] == [[first.socket_id, second.socket_id], [second.socket_id]]


async def test_other_channels_are_sampled(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces, "SAMPLE_MS", 3_600_000)
    await subscribe(worker, "news")
    first = await publish(worker, "news")
    await recorded(worker, first)
    await publish(worker, "news")
    worker.hub.recorder.trace("1", "other", 60)
    last = await publish(worker, "news")
    await subscribe(worker, "other")
    await recorded(worker, await publish(worker, "other"))
    assert worker.hub.recorder.record(last) == {}
    assert [one["channel"] for one in worker.hub.recorder.recent(10)] == ["other", "news"]


async def test_workers_that_read_at_different_times_sample_the_same_events(worker: Worker) -> None:
    channel = connections.Channel("1", "news")
    entries = [
        interface.Entry(number, interface.Kind.EVENT, "1", "news", None, None, None, b"{}", 1_800_000_000_000 + ms)
        for number, ms in enumerate([0, 150, 190, 210, 390, 401, 800])
    ]

    def sample(*reads: int) -> list[str]:
        """`reads`: how many entries each read brings."""
        recorder, left = traces.Recorder(worker.hub.engine), list(entries)
        for count in reads:
            read, left = left[:count], left[count:]
            if recorder.is_due(read[-1]):
                recorder.begin(channel, read, {}, 0.0)
        return [one["entry"] for one in recorder.recent(10)]

    assert sample(1, 1, 1, 1, 1, 1, 1) == ["0:6", "0:5", "0:3", "0:0"]
    assert sample(1, 2, 1, 2, 1) == ["0:6", "0:5", "0:3", "0:0"]


async def test_read_of_several_channels_is_sampled_by_its_newest_entry(worker: Worker) -> None:
    for channel in ("news", "other"):
        await subscribe(worker, channel)

    def entry(number: int, channel: str, ms: int, kind: interface.Kind = interface.Kind.EVENT) -> interface.Entry:
        return interface.Entry(number, kind, "1", channel, None, None, None, b"{}", 1_900_000_000_000 + ms)

    worker.hub._deliver([entry(1, "news", 0)])
    worker.hub._deliver([entry(2, "news", 100), entry(3, "other", 150), entry(4, "news", 250)])
    worker.hub._deliver([entry(5, "news", 400, interface.Kind.MEMBER_UPDATED), entry(6, "other", 410)])
    assert [one["entry"] for one in worker.hub.recorder.recent(10)] == ["0:6", "0:4", "0:1"]


async def test_sample_goes_on_after_the_clock_was_set_back(worker: Worker) -> None:
    recorder = traces.Recorder(worker.hub.engine)
    now, earlier, late = (
        interface.Entry(1, interface.Kind.EVENT, "1", "news", None, None, None, b"{}", 1_800_000_000_000 + ms)
        for ms in (0, -3_600_000, -1_000)
    )
    recorder.begin(connections.Channel("1", "news"), [now], {}, 0.0)
    assert recorder.is_due(earlier)
    assert not recorder.is_due(late)  # another partition's, read a little later


async def test_recovery_that_sends_a_recorded_event_is_added_to_its_record(worker: Worker) -> None:
    worker.hub.recorder.trace("1", "kept", 60)
    await subscribe(worker, "kept")
    key = await publish(worker, "kept", retention=interface.Retention(10, 60))
    await recorded(worker, key)
    rewind = interface.RecoveryRequest(rewind=interface.Rewind(5, 0))
    late = await subscribe(worker, "kept", recovery=connections.Recovery(rewind))

    async def is_replayed() -> Any:
        return worker.hub.recorder.record(key)["delivery"].get("replays")

    replays = await waiting.until_async(is_replayed, 5, "the recovery is recorded")
    assert [one["socket"] for one in replays] == [late.socket_id]


@pytest.mark.parametrize("text", ["", "1", "0:", ":1", "a:1", "0:-1", "0:1:2", "0:" + "9" * 30, "٣:1"])
def test_position_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"PARTITION:ID|digits"):
        traces.parse(text)


def test_position_is_read_as_it_is_written() -> None:
    assert traces.parse(traces.position(3, 4711)) == (3, 4711)
