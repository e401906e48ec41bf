"""Recovery: each kind of answer that the engine can give, and the streams that come with it."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable

import orjson
import pytest

from fanfare.engine import interface
from fanfare.hub import connections, pacing, streams
from fanfare.hub import hub as hubs
from tests.harness import waiting
from tests.unit.hub.doubles import APP, Client, ScriptedEngine, subscribed

TOP = interface.Position("e", 7)
AFTER_5 = interface.RecoveryRequest(after=interface.Position("e", 5))
REWIND = interface.RecoveryRequest(rewind=interface.Rewind(count=10, seconds=0))
HEAD = streams.Head("story").encode()
OPEN = interface.Streamed("s", interface.StreamState.OPEN, 1, 4, HEAD, (b"once",))


def kept(*offsets: int) -> tuple[interface.Entry, ...]:
    return tuple(
        interface.Entry(offset, interface.Kind.MESSAGE, APP, "kept", offset, None, None, b"%d" % offset)
        for offset in offsets
    )


def result(*offsets: int, complete: bool = True, reason: str | None = None) -> interface.RecoveryResult:
    return interface.RecoveryResult(TOP, kept(*offsets), len(offsets), complete, reason)


def ended(offset: int | None) -> interface.Streamed:
    return interface.Streamed("s", interface.StreamState.DONE, 1, 4, HEAD, body=b"whole", offset=offset)


class Subscriber(Client):
    """`on_answer` runs after the answer to its subscribe."""

    on_answer: Callable[[], None] = staticmethod(lambda: None)

    def subscribed(self, subscription: connections.Subscription, answer: interface.SubscribeResult) -> None:
        super().subscribed(subscription, answer)
        self.on_answer()


def subscribe(hub: hubs.Hub, request: interface.RecoveryRequest | None) -> Subscriber:
    client = Subscriber(hub, "1.1")
    client.subscribe("kept", recovery=None if request is None else connections.Recovery(request))
    return client


def counts(hub: hubs.Hub, prefix: str) -> dict[str, int]:
    return {name: number for name, number in hub.counters.items() if name.startswith(prefix) and number}


async def until(condition: Callable[[], object]) -> None:
    async def look() -> object:
        return condition()

    await waiting.until_async(look, 30, "the condition")


@pytest.mark.parametrize(
    ("request_", "answer", "counted"),
    [
        (AFTER_5, result(6, 7), {"recovery.complete": 1}),
        (AFTER_5, result(reason="position_expired"), {"recovery.position_expired": 1}),
        (REWIND, result(6, 7), {}),
        (AFTER_5, None, {}),
        (None, None, {}),
    ],
)
async def test_outcome_of_a_recovery_is_counted_and_that_of_a_rewind_is_not(
    hub: hubs.Hub,
    engine: ScriptedEngine,
    request_: interface.RecoveryRequest | None,
    answer: interface.RecoveryResult | None,
    counted: dict[str, int],
) -> None:
    client = subscribe(hub, request_)
    engine.answer(replayed=answer)
    assert counts(hub, "recovery.") == counted
    assert client.state("kept") is connections.State.LIVE
    assert client.got == [subscribed("kept"), *(entry.body for entry in (answer.entries if answer else ()))]


async def test_chunks_follow_each_other_until_the_position_of_the_reader(hub: hubs.Hub, engine: ScriptedEngine) -> None:
    client = subscribe(hub, AFTER_5)
    engine.answer(replayed=result(6, complete=False))
    assert client.state("kept") is connections.State.CATCHING_UP
    assert client.subscription("kept").since == 5
    assert hub.statistics()["recoveries.now"] == 1
    await until(lambda: engine.attaching)
    [(request, _)] = engine.attaching
    assert request.history is not None
    assert request.history.after == interface.Position("e", 6)
    assert request.history.continued
    assert not request.durable
    engine.answer(replayed=result(7))
    assert client.state("kept") is connections.State.LIVE
    assert client.got == [subscribed("kept"), b"6", b"7"]
    assert hub.statistics()["recoveries.now"] == 0
    assert hub.counters["recovered"] == 2


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (interface.Refused("other", "the disk is gone"), "the disk is gone"),
        (interface.SubscribeResult(), "the history cannot be read"),
    ],
)
async def test_recovery_whose_next_chunk_cannot_be_read_is_closed_with_the_reason(
    hub: hubs.Hub, engine: ScriptedEngine, answer: interface.SubscribeResult | interface.Refused, reason: str
) -> None:
    client = subscribe(hub, AFTER_5)
    engine.answer(replayed=result(6, complete=False))
    await until(lambda: engine.attaching)
    engine.attaching.pop()[1](answer)
    assert client.writer.closed == (4100, f"The recovery was interrupted: {reason}")
    assert client.lost == []
    assert counts(hub, "recoveries.") == {"recoveries.interrupted": 1}
    assert hub.statistics()["recoveries.now"] == 0


async def test_chunk_for_a_subscription_that_has_left_is_dropped(hub: hubs.Hub, engine: ScriptedEngine) -> None:
    client = subscribe(hub, AFTER_5)
    engine.answer(replayed=result(6, complete=False))
    await until(lambda: engine.attaching)
    client.unsubscribe("kept")
    engine.answer(replayed=result(7))
    assert client.got == [subscribed("kept"), b"6"]
    assert hub.statistics()["recoveries.now"] == 0


async def test_recovery_of_a_later_chunk_that_is_refused_is_reported_at_the_position_of_the_reader(
    hub: hubs.Hub, engine: ScriptedEngine
) -> None:
    client = subscribe(hub, AFTER_5)
    engine.answer(replayed=result(6, complete=False))
    await until(lambda: engine.attaching)
    engine.answer(replayed=result(reason="position_expired"), cached=b"newest")
    assert (client.lost, client.cached) == (["position_expired"], [b"newest"])
    assert client.state("kept") is connections.State.LIVE
    assert client.subscription("kept").since == TOP.offset
    assert counts(hub, "recoveries.") == {"recoveries.lost.position_expired": 1}


@pytest.mark.parametrize(
    ("request_", "answer", "expected"),
    [
        (None, None, ["stream"]),
        (AFTER_5, result(6, 7), ["6", "7", "stream"]),
        (AFTER_5, result(6, complete=False), ["stream", "6"]),
    ],
)
async def test_open_stream_is_written_to_each_new_subscriber(
    hub: hubs.Hub,
    engine: ScriptedEngine,
    request_: interface.RecoveryRequest | None,
    answer: interface.RecoveryResult | None,
    expected: list[str],
) -> None:
    client = subscribe(hub, request_)
    engine.answer(replayed=answer, streams=(OPEN,))
    [whole] = streams.snapshot("kept", OPEN)
    assert orjson.loads(orjson.loads(whole)["data"])["text"] == "once"
    assert client.got[1:] == [whole if one == "stream" else one.encode() for one in expected]
    assert counts(hub, "streams.") == {"streams.caught_up": 1}
    assert client.subscription("kept").channel.streams, "the next subscriber asks the engine for streams"


async def test_ended_stream_is_asked_for_as_long_as_the_engine_has_it(
    engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = types.SimpleNamespace(monotonic=lambda: 1_000.0)
    monkeypatch.setattr(streams, "time", clock)
    hub = hubs.Hub(engine, stream_keep_s=300)
    await hub.start()
    channel = subscribe(hub, None).subscription("kept").channel
    engine.answer(streams=(ended(None),))
    known = []
    for second in (1_299.0, 1_301.0):
        clock.monotonic = lambda second=second: second
        known.append(bool(channel.streams))
    await hub.stop()
    assert known == [True, False]


@pytest.mark.parametrize(
    ("request_", "answer", "stream", "is_written"),
    [
        (None, None, ended(7), True),
        (AFTER_5, result(6, 7), ended(7), False),
        (AFTER_5, result(6, 7), ended(3), False),
        (AFTER_5, result(6, 7), ended(None), True),
        (AFTER_5, result(reason="position_expired"), ended(7), True),
        (AFTER_5, None, ended(7), True),
        (REWIND, result(6, 7), ended(7), False),
        (REWIND, result(6, 7), ended(3), True),
    ],
)
async def test_end_of_a_stream_is_written_unless_the_client_has_it_or_recovers_it(
    hub: hubs.Hub,
    engine: ScriptedEngine,
    request_: interface.RecoveryRequest | None,
    answer: interface.RecoveryResult | None,
    stream: interface.Streamed,
    is_written: bool,
) -> None:
    client = subscribe(hub, request_)
    engine.answer(replayed=answer, streams=(stream,))
    assert (b"whole" in client.got) is is_written
    assert hub.counters["streams.caught_up"] == int(is_written)
    assert client.writer.writes == 1 + is_written + bool(answer and answer.entries)


@pytest.mark.parametrize("answer", [None, result(6, 7), result(6, complete=False)])
async def test_client_that_leaves_with_its_answer_gets_no_stream_and_no_entry(
    hub: hubs.Hub, engine: ScriptedEngine, answer: interface.RecoveryResult | None
) -> None:
    client = subscribe(hub, AFTER_5)
    client.on_answer = functools.partial(client.unsubscribe, "kept")
    engine.answer(replayed=answer, streams=(OPEN,))
    assert client.got == [subscribed("kept")]
    assert hub.counters["streams.caught_up"] == 0
    assert hub.statistics()["recoveries.now"] == 0


@pytest.mark.parametrize("answer", [None, result(6, 7), result(6, complete=False)])
async def test_connection_that_is_closed_with_its_answer_gets_no_stream_and_no_entry(
    hub: hubs.Hub, engine: ScriptedEngine, answer: interface.RecoveryResult | None
) -> None:
    client = subscribe(hub, AFTER_5)
    client.on_answer = functools.partial(client.connection.close, 4000)
    engine.answer(replayed=answer, streams=(OPEN,))
    assert client.got == [subscribed("kept"), b"bye 4000"]
    assert hub.counters["streams.caught_up"] == 0
    assert hub.statistics()["recoveries.now"] == 0


async def test_complete_recovery_waits_behind_a_reader_that_has_bytes_buffered(
    hub: hubs.Hub, engine: ScriptedEngine
) -> None:
    client = subscribe(hub, AFTER_5)
    client.writer.waiting = pacing.PACE_BYTES + 1
    engine.answer(replayed=result(6, 7))
    assert client.got == [subscribed("kept")]
    assert client.state("kept") is connections.State.CATCHING_UP
    client.writer.waiting = 0
    await until(lambda: engine.attaching)
    [(request, _)] = engine.attaching
    assert request.history is not None
    assert request.history.after == interface.Position("e", 5)


async def test_recovery_without_entries_does_not_wait_behind_a_reader_that_has_bytes_buffered(
    hub: hubs.Hub, engine: ScriptedEngine
) -> None:
    client = subscribe(hub, AFTER_5)
    client.writer.waiting = pacing.PACE_BYTES + 1
    engine.answer(replayed=result())
    assert client.state("kept") is connections.State.LIVE


@pytest.mark.parametrize("request_", [AFTER_5, REWIND])
@pytest.mark.parametrize(("newer", "unknown"), [(0, 0), (1, 1)])
async def test_entry_of_the_newest_kind_is_sent_and_one_of_a_newer_release_is_not(
    hub: hubs.Hub, engine: ScriptedEngine, request_: interface.RecoveryRequest, newer: int, unknown: int
) -> None:
    client = subscribe(hub, request_)
    entries = [entry._replace(kind=interface.NEWEST_KIND + newer) for entry in kept(6)]
    engine.answer(replayed=interface.RecoveryResult(TOP, (*entries, *kept(7)), 2, complete=True))
    sent = [] if newer and request_ is AFTER_5 else [b"7"] if newer else [b"6", b"7"]
    assert client.got[1:] == sent
    assert hub.counters["entries.unknown"] == unknown


async def test_entries_that_were_replaced_are_not_sent(hub: hubs.Hub, engine: ScriptedEngine) -> None:
    client = subscribe(hub, AFTER_5)
    engine.answer(
        replayed=interface.RecoveryResult(TOP, tuple(one._replace(body=b"") for one in kept(6, 7)), 2, complete=True)
    )
    assert client.writer.writes == 1, "the answer"
    assert hub.counters["recovered"] == 0


@pytest.mark.parametrize(
    ("request_", "answer", "since"),
    [
        (AFTER_5, result(6, 7), 5),
        (AFTER_5, result(reason="position_expired"), 7),
        (REWIND, result(3, 4, 7), 2),
        (REWIND, result(), 7),
        (REWIND, interface.RecoveryResult(None, complete=True), None),
    ],
)
async def test_all_kept_entries_after_the_first_position_are_sent(
    hub: hubs.Hub,
    engine: ScriptedEngine,
    request_: interface.RecoveryRequest,
    answer: interface.RecoveryResult,
    since: int | None,
) -> None:
    client = subscribe(hub, request_)
    engine.answer(replayed=answer)
    assert client.subscription("kept").since == since
    if answer.position is not None:
        assert client.position("kept") == TOP
