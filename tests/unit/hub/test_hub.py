"""The hub: the states of a subscription, the fan-out, and the end of connections."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

import pytest

from fanfare.engine import interface
from fanfare.hub import attempts, connections, event_frames, pacing
from fanfare.hub import hub as hubs
from tests.harness import waiting
from tests.unit.hub.doubles import APP, Client, ScriptedEngine, subscribed, subscribed_again


@pytest.fixture
def client(hub: hubs.Hub) -> Callable[[], Client]:
    numbers = itertools.count(1)
    return lambda: Client(hub, f"1.{next(numbers)}")


NewClient = Callable[[], Client]


async def test_answer_precedes_the_first_event_and_later_events_are_delivered(
    engine: ScriptedEngine, client: NewClient
) -> None:
    one = client()
    one.subscribe("news")
    engine.deliver([engine.entry("news", b"before")])
    engine.answer()
    engine.deliver([engine.entry("news", b"after")])
    assert one.got == [subscribed("news"), b"after"]


async def test_only_the_first_subscriber_of_a_channel_waits_for_the_engine(
    engine: ScriptedEngine, client: NewClient
) -> None:
    one, two = client(), client()
    one.subscribe("news")
    engine.answer()
    two.subscribe("news")
    assert two.got == [subscribed("news")]
    assert engine.attaching == []
    assert engine.counts["news"] == 2


async def test_connection_on_several_channels_is_written_to_once_per_read(
    engine: ScriptedEngine, client: NewClient
) -> None:
    one, two, three = client(), client(), client()
    for someone, names in ((one, ("news", "sports")), (two, ("sports", "news")), (three, ("news",))):
        for name in names:
            someone.subscribe(name)
            if engine.attaching:
                engine.answer()
        someone.got.clear()
    before = [someone.writer.writes for someone in (one, two, three)]
    engine.deliver(
        [
            engine.entry("news", b"n1"),
            engine.entry("sports", b"s1", exclude=two.connection.socket_id),
            engine.entry("news", b"n2"),
        ]
    )
    assert (one.got, two.got, three.got) == ([b"n1", b"n2", b"s1"], [b"n1", b"n2"], [b"n1", b"n2"])
    assert [someone.writer.writes for someone in (one, two, three)] == [number + 1 for number in before]


async def test_slow_connection_on_several_channels_is_disconnected_with_4100(
    engine: ScriptedEngine, hub: hubs.Hub, client: NewClient
) -> None:
    one = client()
    for name in ("news", "sports"):
        one.subscribe(name)
        engine.answer()
    one.writer.full = True
    engine.deliver([engine.entry("news", b"n1"), engine.entry("sports", b"s1")])
    assert one.writer.closed is not None
    assert hub.statistics()["closed.slow"] == 1
    [refusal] = hub.activity.refusals
    assert refusal["socket"] == one.connection.socket_id
    assert refusal["text"].startswith("The connection reads too slowly: ")


async def test_every_member_of_a_presence_channel_waits_for_the_engine(
    engine: ScriptedEngine, client: NewClient
) -> None:
    one, two = client(), client()
    one.subscribe("presence-c", "ann")
    engine.answer()
    two.subscribe("presence-c", "bob")
    assert two.got == []
    engine.answer(interface.Member("ann", "null"), interface.Member("bob", "null"))
    assert two.answers[0][1] == interface.SubscribeResult(
        (interface.Member("ann", "null"), interface.Member("bob", "null"))
    )


async def test_subscriber_count_includes_attaching_subscriptions(engine: ScriptedEngine, client: NewClient) -> None:
    one, two = client(), client()
    one.subscribe("news")
    two.subscribe("news")
    assert engine.counts["news"] == 2
    engine.answer()
    two.unsubscribe("news")
    assert engine.counts["news"] == 1
    engine.answer()
    assert two.answers == []
    one.unsubscribe("news")
    assert engine.counts["news"] == 0


async def test_unsubscribe_while_attaching_leaves_without_an_answer(engine: ScriptedEngine, client: NewClient) -> None:
    one = client()
    one.subscribe("presence-c", "ann")
    one.unsubscribe("presence-c")
    engine.answer()
    engine.deliver([engine.entry("presence-c", b"x")])
    assert one.answers == []
    assert one.got == []
    assert engine.left == [("presence-c", "1.1")]


async def test_answer_of_an_earlier_subscription_does_not_make_a_new_one_live(
    engine: ScriptedEngine, client: NewClient
) -> None:
    one = client()
    one.subscribe("presence-c", "ann")
    one.unsubscribe("presence-c")
    one.subscribe("presence-c", "ann")
    engine.answer()  # of the first
    engine.deliver([engine.entry("presence-c", b"too early")])
    assert one.got == []
    engine.answer(interface.Member("ann", "null"))
    engine.deliver([engine.entry("presence-c", b"x")])
    assert one.got == [subscribed("presence-c"), b"x"]


async def test_repeated_subscribe_is_answered_again_and_events_come_once(
    engine: ScriptedEngine, client: NewClient
) -> None:
    one = client()
    one.subscribe("presence-c", "ann")
    engine.answer()
    one.subscribe("presence-c", "ann")
    engine.answer(interface.Member("ann", "null"))
    engine.deliver([engine.entry("presence-c", b"x")])
    assert one.got == [subscribed("presence-c"), subscribed_again("presence-c"), b"x"]
    assert engine.counts["presence-c"] == 1


async def test_refused_subscription_leaves_no_state_behind(
    engine: ScriptedEngine, hub: hubs.Hub, client: NewClient
) -> None:
    one = client()
    one.subscribe("presence-c", "ann")
    engine.refuse("member_limit")
    assert isinstance(one.answers[0][1], interface.Refused)
    assert engine.counts["presence-c"] == 0
    assert hub.statistics()["channels.now"] == 0
    assert one.state("presence-c") is connections.State.LEFT


async def test_unsubscribe_ends_the_repetition_of_a_subscribe(
    engine: ScriptedEngine, hub: hubs.Hub, client: NewClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "FIRST_PAUSE_S", 0.01)
    one = client()
    one.subscribe("news")
    engine.refuse("engine_unavailable")
    await waiting.until_async(lambda: attaching(engine), 30, "the request is repeated")
    engine.refuse("engine_unavailable")
    one.unsubscribe("news")
    other = client()
    other.subscribe("other")
    await hub.supervisor.stop()
    assert [wanted.channel for wanted, _ in engine.attaching] == ["other"]
    assert one.answers == []


async def attaching(engine: ScriptedEngine) -> bool:
    return bool(engine.attaching)


async def test_repeated_subscribe_that_raises_closes_its_connection(
    engine: ScriptedEngine, hub: hubs.Hub, client: NewClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = client(), client()
    one.subscribe("news")
    two.subscribe("news")

    def broken(*_: Any) -> None:
        raise ValueError("a mistake")

    with monkeypatch.context() as patched:
        patched.setattr(engine, "attach", broken)
        engine.refuse("engine_unavailable")
        await waiting.until_async(lambda: closed(one), 30, "the connection is closed")
    assert one.writer.closed == (4200, "Events may have been missed; reconnect")
    engine.answer()
    assert two.state("news") is connections.State.LIVE
    assert hub.statistics()["callbacks.failed"] == 1


async def closed(client: Client) -> bool:
    return client.writer.closed is not None


async def test_disconnect_while_attaching_leaves_without_an_answer(
    engine: ScriptedEngine, hub: hubs.Hub, client: NewClient
) -> None:
    one = client()
    one.subscribe("presence-c", "ann")
    hub.disconnect(one.connection)
    hub.disconnect(one.connection)
    engine.answer()
    assert one.answers == []
    assert engine.left == [("presence-c", "1.1")]
    assert engine.counts == {"": 0, "presence-c": 0}


async def test_excluded_socket_gets_the_other_entries_of_the_read(engine: ScriptedEngine, client: NewClient) -> None:
    one, two = client(), client()
    for each in (one, two):
        each.subscribe("news")
    engine.answer()
    engine.answer()
    engine.deliver(
        [
            engine.entry("news", b"1"),
            engine.entry("news", b"2", exclude="1.1"),
            engine.entry("news", b"3", exclude="9.9"),
        ]
    )
    assert one.got[1:] == [b"1", b"3"]
    assert two.got[1:] == [b"1", b"2", b"3"]


async def test_one_read_is_one_write_for_each_connection(engine: ScriptedEngine, client: NewClient) -> None:
    one = client()
    for channel in ("a", "b"):
        one.subscribe(channel)
        engine.answer()
    before = one.writer.writes
    engine.deliver([engine.entry(channel, f"{channel}{n}".encode()) for n in range(10) for channel in ("a", "b")])
    assert one.writer.writes - before == 1
    assert [body for body in one.got if body.startswith(b"a")] == [f"a{n}".encode() for n in range(10)]


async def test_applications_get_only_their_own_events(engine: ScriptedEngine, hub: hubs.Hub) -> None:
    here, there = Client(hub, "1.1"), Client(hub, "2.1", app="2")
    for each in (here, there):
        each.subscribe("news")
        engine.answer()
    engine.deliver([engine.entry("news", b"x", app="2")])
    assert here.got == [subscribed("news")]
    assert there.got == [subscribed("news"), b"x"]


async def test_member_frames_have_the_form_of_the_protocol(engine: ScriptedEngine, client: NewClient) -> None:
    one = client()
    one.subscribe("presence-c", "ann")
    engine.answer()
    added, removed = interface.Kind.MEMBER_ADDED, interface.Kind.MEMBER_REMOVED
    engine.deliver(
        [
            engine.entry("presence-c", b'{"n":1}', kind=added, user_id='b"b'),
            engine.entry("presence-c", b"null", kind=added, user_id="7"),
            engine.entry("presence-c", b"", kind=removed, user_id="7"),
        ]
    )
    prefix = b'{"event":"pusher_internal:member_'
    assert one.got[1:] == [
        prefix + b'added","channel":"presence-c","data":"{\\"user_id\\":\\"b\\\\\\"b\\",\\"user_info\\":{\\"n\\":1}}"}',
        prefix + b'added","channel":"presence-c","data":"{\\"user_id\\":\\"7\\"}"}',
        prefix + b'removed","channel":"presence-c","data":"{\\"user_id\\":\\"7\\"}"}',
    ]


async def test_command_that_closes_connections_delivers_earlier_events_first(
    engine: ScriptedEngine, hub: hubs.Hub, client: NewClient
) -> None:
    one = client()
    one.subscribe("news")
    engine.answer()

    def close(app: str, body: bytes) -> None:
        hub.flush()
        hub.close_application(body.decode(), 4003, "disabled")

    hub.on_control("close", close)
    engine.deliver(
        [
            engine.entry("news", b"1"),
            engine.entry("close", APP.encode(), kind=interface.Kind.CONTROL),
            engine.entry("news", b"2"),
        ]
    )
    assert one.got[1:] == [b"1", b"bye 4003"]
    assert one.writer.closed == (4003, "disabled")
    assert hub.statistics()["connections.now"] == 0


async def test_other_commands_leave_the_events_of_a_read_joined(
    engine: ScriptedEngine, hub: hubs.Hub, client: NewClient
) -> None:
    one = client()
    one.subscribe("news")
    engine.answer()
    obeyed: list[bytes] = []
    hub.on_control("taken", lambda app, body: obeyed.append(body))
    before = one.writer.writes
    engine.deliver(
        [
            engine.entry("news", b"1"),
            engine.entry("taken", b"token", kind=interface.Kind.CONTROL),
            engine.entry("news", b"2"),
        ]
    )
    assert one.got[1:] == [b"1", b"2"]
    assert one.writer.writes == before + 1
    assert obeyed == [b"token"]


async def test_watched_subscription_is_reported_once_at_its_next_kept_event(
    engine: ScriptedEngine, hub: hubs.Hub, client: NewClient
) -> None:
    one, other = client(), client()
    one.subscribe("news")
    hub.watch(one.subscription("news"))
    engine.answer()
    other.subscribe("news")
    engine.deliver([engine.entry("news", b"1", offset=1)])
    assert one.moved == [], "the subscription was attaching when it was watched"
    hub.watch(one.subscription("news"))
    hub.watch(other.subscription("news"))
    engine.deliver([engine.entry("news", b"3", kind=interface.Kind.COUNT)])
    assert one.moved == [], "an entry without an offset moves no position"
    other.unsubscribe("news")
    engine.deliver([engine.entry("news", b"2", offset=2), engine.entry("news", b"3", offset=3)])
    engine.deliver([engine.entry("news", b"4", offset=4)])
    assert (one.moved, other.moved) == (["news"], [])


async def test_failing_command_does_not_stop_deliveries(
    engine: ScriptedEngine, hub: hubs.Hub, client: NewClient
) -> None:
    one = client()
    one.subscribe("news")
    engine.answer()

    def fail(app: str, body: bytes) -> None:
        raise ValueError(body)

    hub.on_control("broken", fail)
    for command in ("broken", "unknown"):
        engine.deliver([engine.entry(command, b"", kind=interface.Kind.CONTROL), engine.entry("news", b"x")])
    assert one.got[1:] == [b"x", b"x"]
    assert hub.statistics()["controls.failed"] == hub.statistics()["controls.unknown"] == 1


async def test_entry_of_a_newer_release_is_skipped_and_counted(
    engine: ScriptedEngine, hub: hubs.Hub, client: NewClient
) -> None:
    one = client()
    one.subscribe("news")
    engine.answer()
    newer = engine.entry("news", b"unknown", kind=max(interface.Kind) + 1)  # type: ignore[arg-type]
    engine.deliver([engine.entry("news", b"x"), newer, engine.entry("news", b"y")])
    assert b"unknown" not in b"".join(one.got)
    assert b"".join(one.got).endswith(b"xy")
    assert hub.statistics()["entries.unknown"] == 1


async def test_slow_subscriber_is_disconnected_with_4100_and_its_transport_dropped(
    engine: ScriptedEngine, hub: hubs.Hub, client: NewClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hubs, "CLOSE_SLOW_S", 0.0)
    slow, quick = client(), client()
    slow.subscribe("presence-c", "ann")
    quick.subscribe("presence-c", "bob")
    engine.answer()
    engine.answer()
    slow.writer.full = True
    engine.deliver([engine.entry("presence-c", b"x")])
    engine.deliver([engine.entry("presence-c", b"y")])
    assert slow.got[-2:] == [b"x", b"bye 4100"]
    assert slow.writer.closed is not None
    assert slow.writer.closed[0] == 4100
    assert engine.left == [("presence-c", "1.1")]
    assert quick.got[-2:] == [b"x", b"y"]
    assert hub.statistics()["closed.slow"] == 1
    await until(lambda: slow.writer.aborted)
    assert hub.statistics()["closing.now"] == 0


async def test_replies_count_against_the_buffer_bound(hub: hubs.Hub, client: NewClient) -> None:
    one = client()
    one.writer.full = True
    one.connection.send(b"pong")
    one.connection.send(b"pong")
    assert one.got == [b"pong", b"bye 4100"]
    assert hub.statistics()["connections.now"] == 0


async def test_connection_that_the_server_below_closed_is_found_by_the_sweep(
    engine: ScriptedEngine, hub: hubs.Hub, client: NewClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hubs, "SWEEP_S", 0.01)
    monkeypatch.setattr(hubs, "CLOSE_SLOW_S", 0.0)
    one = client()
    one.subscribe("presence-c", "ann")
    engine.answer()
    one.writer.gone = True
    await until(lambda: engine.left == [("presence-c", "1.1")])
    await until(lambda: one.writer.aborted)


async def test_every_subscriber_of_a_cache_channel_asks_the_engine(
    engine: ScriptedEngine, hub: hubs.Hub, client: NewClient
) -> None:
    one, two = client(), client()
    one.subscribe("cache-c")
    engine.answer()
    two.subscribe("cache-c", cached=True)
    wanted, _ = engine.attaching[0]
    assert (wanted.durable, wanted.cached) == (False, True)
    engine.answer(cached=b"x")
    assert two.answers == [("cache-c", interface.SubscribeResult(cached=b"x"))]


async def test_slow_reader_of_a_cache_channel_gets_the_newest_state_when_it_has_read(
    engine: ScriptedEngine, hub: hubs.Hub, client: NewClient
) -> None:
    slow, quick = client(), client()
    for each in (slow, quick):
        each.subscribe("cache-c", cached=True)
        engine.answer()
    slow.writer.waiting = pacing.PACE_BYTES + 1
    for number in range(1, 6):
        engine.deliver([engine.entry("cache-c", b"%d" % number)])
    engine.deliver([engine.entry("cache-c", b"mine", exclude="1.1")])
    assert slow.got == [subscribed("cache-c")]
    slow.writer.waiting = 0
    await until(lambda: slow.got[1:] == [b"5"])
    engine.deliver([engine.entry("cache-c", b"6")])
    assert slow.got[1:] == [b"5", b"6"]
    assert quick.got[1:] == [b"1", b"2", b"3", b"4", b"5", b"mine", b"6"]
    assert hub.statistics()["conflated"] == 4
    assert hub.statistics()["conflated.now"] == 0


@pytest.mark.parametrize(
    ("kind", "frame"),
    [
        (interface.Kind.CLIENT_EVENT, b"typing"),
        (interface.Kind.COUNT, event_frames.subscription_count("cache-c", 7)),
        (interface.Kind.MEMBER_ADDED, event_frames.member_added("cache-c", "ann", "null")),
    ],
)
async def test_conflation_drops_only_states_and_keeps_the_order_of_the_log(
    engine: ScriptedEngine, hub: hubs.Hub, client: NewClient, kind: interface.Kind, frame: bytes
) -> None:
    bodies = {interface.Kind.CLIENT_EVENT: b"typing", interface.Kind.COUNT: b"7", interface.Kind.MEMBER_ADDED: b"null"}
    slow = client()
    slow.subscribe("cache-c", cached=True)
    engine.answer()
    slow.writer.waiting = pacing.PACE_BYTES + 1

    def other() -> interface.Entry:
        return engine.entry("cache-c", bodies[kind], kind=kind, user_id="ann")

    engine.deliver([engine.entry("cache-c", b"old"), other()])
    engine.deliver([engine.entry("cache-c", b"state"), other()])
    slow.writer.waiting = 0
    await until(lambda: len(slow.got) > 1)
    assert slow.got[1:] == [frame, b"state", frame]


async def test_position_of_a_slow_reader_is_before_its_pending_entries(
    engine: ScriptedEngine, hub: hubs.Hub, client: NewClient
) -> None:
    slow = client()
    slow.subscribe("cache-c", cached=True, recovery=connections.Recovery(interface.RecoveryRequest()))
    engine.answer(replayed=interface.RecoveryResult(interface.Position("E", 3), complete=True))
    slow.writer.waiting = pacing.PACE_BYTES + 1
    for offset in (4, 5):
        engine.deliver([engine.entry("cache-c", b"%d" % offset, offset=offset)])
    assert slow.position("cache-c") == interface.Position("E", 4), "5 was not sent"
    slow.writer.waiting = 0
    await until(lambda: slow.got[1:] == [b"5"])
    assert slow.position("cache-c") == interface.Position("E", 5)


async def test_pending_state_of_an_earlier_subscription_is_not_sent_to_a_new_one(
    engine: ScriptedEngine, hub: hubs.Hub, client: NewClient
) -> None:
    slow = client()
    slow.subscribe("cache-c", cached=True)
    engine.answer()
    slow.writer.waiting = pacing.PACE_BYTES + 1
    engine.deliver([engine.entry("cache-c", b"old")])
    slow.unsubscribe("cache-c")
    slow.subscribe("cache-c", cached=True)
    engine.answer(cached=b"new")
    slow.writer.waiting = 0
    engine.deliver([engine.entry("cache-c", b"newer")])
    await asyncio.sleep(0.01)
    assert slow.got == [subscribed("cache-c"), subscribed("cache-c"), b"newer"]
    assert hub.statistics()["conflated.now"] == 0


async def test_slow_reader_is_disconnected_when_its_pending_entries_exceed_the_buffer_bound(
    engine: ScriptedEngine, hub: hubs.Hub, client: NewClient
) -> None:
    slow = client()
    slow.subscribe("cache-c", cached=True)
    engine.answer()
    slow.writer.waiting = pacing.PACE_BYTES + 1
    event = engine.entry("cache-c", b"x" * 100_000, kind=interface.Kind.CLIENT_EVENT)
    for _ in range(hub.max_buffer_bytes // 100_000):
        engine.deliver([event])
    assert slow.writer.closed is None
    engine.deliver([event])
    assert slow.writer.closed is not None
    assert slow.writer.closed[0] == 4100


async def test_subscriber_that_gets_the_count_waits_until_it_is_included(
    engine: ScriptedEngine, hub: hubs.Hub, client: NewClient
) -> None:
    one, two = client(), client()
    for each in (one, two):
        each.subscribe("news", announce=True)
        wanted, _ = engine.attaching[0]
        assert (wanted.durable, wanted.counted) == (True, True)
        engine.answer(subscribers=1)
    engine.deliver([engine.entry("news", b"2", kind=interface.Kind.COUNT)])
    assert one.got[1:] == [
        b'{"event":"pusher_internal:subscription_count","channel":"news","data":"{\\"subscription_count\\":2}"}'
    ]


async def test_entries_for_webhooks_only_are_not_delivered(engine: ScriptedEngine, client: NewClient) -> None:
    one, two = client(), client()
    one.subscribe("cache-c")
    engine.answer()
    two.subscribe("cache-c")
    kinds = (interface.Kind.OCCUPIED, interface.Kind.CACHE_MISS, interface.Kind.VACATED)
    engine.deliver([engine.entry("cache-c", b"", kind=kind) for kind in kinds])
    engine.deliver(
        [
            engine.entry("cache-c", b"", kind=interface.Kind.CACHE_MISS),
            engine.entry("cache-c", b"x", kind=interface.Kind.CLIENT_EVENT, exclude="1.1"),
        ]
    )
    assert one.got == [subscribed("cache-c")]
    assert two.got == [subscribed("cache-c"), b"x"]


async def test_watchlist_reports_users_that_come_online_and_go_offline(
    engine: ScriptedEngine, hub: hubs.Hub, client: NewClient
) -> None:
    ann, bob = client(), client()
    hub.sign_in(ann.connection, "ann", watchlist=["bob", "cid"])
    wanted, _ = engine.attaching[0]
    assert (wanted.channel, wanted.member, wanted.watch) == (
        interface.USERS,
        interface.Member("ann", "null"),
        ("bob", "cid"),
    )
    engine.answer(online=("cid",))
    assert ann.other_answers == [interface.SubscribeResult(online=("cid",))]
    hub.sign_in(bob.connection, "bob")
    engine.answer()
    came, went = interface.Kind.MEMBER_ADDED, interface.Kind.MEMBER_REMOVED
    engine.deliver([engine.entry(interface.USERS, b"null", kind=kind, user_id="bob") for kind in (came, went)])
    engine.deliver([engine.entry(interface.USERS, b"null", kind=came, user_id="dan")])
    assert ann.got == [
        b'{"event":"pusher_internal:watchlist_events","data":"{\\"events\\":[{\\"name\\":\\"%b\\",'
        b'\\"user_ids\\":[\\"bob\\"]}]}"}' % name
        for name in (b"online", b"offline")
    ]
    assert bob.got == []
    assert hub.connections_of_user(APP, "bob") == [bob.connection]
    hub.disconnect(bob.connection)
    assert engine.left == [(interface.USERS, "1.2")]
    assert hub.connections_of_user(APP, "bob") == []


async def test_disconnect_while_signing_in_leaves_no_user_online(
    engine: ScriptedEngine, hub: hubs.Hub, client: NewClient
) -> None:
    one = client()
    hub.sign_in(one.connection, "ann")
    hub.disconnect(one.connection)
    engine.answer()
    assert one.other_answers == []
    assert engine.left == [(interface.USERS, "1.1")]
    assert hub.connections_of_user(APP, "ann") == []


async def test_refused_sign_in_leaves_no_user_online(engine: ScriptedEngine, hub: hubs.Hub, client: NewClient) -> None:
    """The engine may have written it before it failed."""
    one = client()
    hub.sign_in(one.connection, "ann")
    engine.refuse("forbidden")
    assert engine.left == [(interface.USERS, "1.1")]
    assert hub.connections_of_user(APP, "ann") == []


async def test_disconnect_before_a_sign_in_is_repeated_leaves_no_user_online(
    engine: ScriptedEngine, hub: hubs.Hub, client: NewClient
) -> None:
    one = client()
    hub.sign_in(one.connection, "ann")
    engine.refuse("engine_unavailable")
    hub.disconnect(one.connection)

    async def left() -> object:
        return engine.left

    await waiting.until_async(left, 5, "the leave")
    assert engine.left == [(interface.USERS, "1.1")]
    assert engine.attaching == []


async def test_gap_closes_all_connections_with_4200(engine: ScriptedEngine, hub: hubs.Hub, client: NewClient) -> None:
    one = client()
    one.subscribe("presence-c", "ann")
    engine.answer()
    engine.on_gap("trimmed", None)
    assert one.writer.closed is not None
    assert one.writer.closed[0] == 4200
    assert engine.left == [("presence-c", "1.1")]
    assert hub.statistics()["gaps.trimmed"] == 1


async def test_gap_saves_state_before_connections_are_closed(
    engine: ScriptedEngine, hub: hubs.Hub, client: NewClient
) -> None:
    one = client()
    told: list[str] = []
    hub.on_gap(lambda: told.append("keep"))
    engine.slow_to_write = True
    engine.on_gap("log_replaced", None)
    assert (told, one.writer.closed) == (["keep"], None)
    [then] = engine.writing
    then()
    assert one.writer.closed is not None


async def test_nothing_is_delivered_between_a_gap_and_the_close(
    engine: ScriptedEngine, hub: hubs.Hub, client: NewClient
) -> None:
    """A client that got an event after the gap would recover from there, and miss those in between."""
    one = client()
    hub.subscribe(one.connection, "c")
    engine.answer()
    engine.slow_to_write = True
    before = len(one.writer.bodies)
    engine.on_gap("trimmed", None)
    engine.deliver([engine.entry("c", b"after the gap")])
    assert len(one.writer.bodies) == before
    [then] = engine.writing
    then()
    assert one.writer.closed is not None
    two = client()
    hub.subscribe(two.connection, "c")
    engine.answer()
    engine.deliver([engine.entry("c", b"later")])
    assert two.writer.bodies[-1] == b"later"


async def test_close_after_a_gap_in_one_partition_does_not_end_the_gap_in_another(
    engine: ScriptedEngine, hub: hubs.Hub, client: NewClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "partition", lambda app, channel: int(channel == "second"))
    one, two = client(), client()
    for channel, each in (("first", one), ("second", two)):
        hub.subscribe(each.connection, channel)
        engine.answer()
    engine.slow_to_write = True
    engine.on_gap("trimmed", 0)
    engine.on_gap("trimmed", 1)
    of_first, of_second = engine.writing
    of_first()
    assert one.writer.closed is not None
    engine.deliver([engine.entry("second", b"after the gap")])
    assert b"after the gap" not in two.writer.bodies
    of_second()
    assert two.writer.closed is not None


class Failure(Exception):
    pass


def fail(*arguments: object) -> Any:
    raise Failure(arguments)


async def test_writer_that_raises_does_not_stop_the_deliveries(
    engine: ScriptedEngine, client: NewClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    clients = [client() for _ in range(3)]
    for each in clients:
        each.subscribe("news")
        if engine.attaching:
            engine.answer()
    broken = clients[1]
    monkeypatch.setattr(broken.writer, "write", fail)
    engine.deliver([engine.entry("news", b"1")])
    engine.deliver([engine.entry("news", b"2", exclude="9.9")])
    assert [each.got[1:] for each in (clients[0], clients[2])] == [[b"1", b"2"]] * 2
    assert broken.writer.aborted


async def test_owner_that_raises_does_not_stop_the_deliveries(
    engine: ScriptedEngine, hub: hubs.Hub, client: NewClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = client(), client()
    for each in (one, two):
        each.subscribe("news")
        if engine.attaching:
            engine.answer()
        hub.watch(each.subscription("news"))
    monkeypatch.setattr(one, "event_sent", fail)
    engine.deliver([engine.entry("news", b"1", offset=1)])
    assert two.moved == ["news"]
    assert [each.got[-1] for each in (one, two)] == [b"1", b"1"]


async def test_failure_of_one_connection_does_not_stop_the_others_from_being_closed(
    engine: ScriptedEngine, hub: hubs.Hub, client: NewClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    clients = [client() for _ in range(5)]
    monkeypatch.setattr(clients[1].writer, "close", fail)
    saved: list[str] = []
    hub.on_gap(fail)
    hub.on_gap(lambda: saved.append("second"))
    engine.on_gap("trimmed", None)
    assert saved == ["second"]
    assert [each.writer.closed is not None for each in clients] == [True, False, True, True, True]
    assert hub.statistics()["callbacks.failed"] == 2


async def test_transport_that_cannot_be_dropped_does_not_stop_the_others(
    hub: hubs.Hub, client: NewClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hubs, "CLOSE_S", 0.0)
    clients = [client() for _ in range(5)]
    monkeypatch.setattr(clients[1].writer, "abort", fail)
    for each in clients:
        each.connection.close(4200, "bye")
    await until(lambda: sum(each.writer.aborted for each in clients) == 4)


async def test_subscription_whose_answer_fails_closes_its_connection(
    engine: ScriptedEngine, hub: hubs.Hub, client: NewClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the close the client would wait for an answer for ever."""
    one, two = client(), client()
    monkeypatch.setattr(one, "subscribed", fail)
    for each, channel in ((one, "a"), (two, "b")):
        each.subscribe(channel)
        engine.answer()
    assert one.writer.closed == (4200, "Events may have been missed; reconnect")
    assert two.got == [subscribed("b")]
    assert hub.statistics()["callbacks.failed"] == 1


async def test_callback_of_a_paced_connection_that_raises_closes_it(
    hub: hubs.Hub, client: NewClient, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = client(), client()
    done: list[str] = []
    hub._pacing.when_drained(one.connection, fail)
    hub._pacing.when_drained(two.connection, lambda: done.append("two"))
    await until(lambda: done == ["two"])
    assert one.writer.closed is not None
    assert two.writer.closed is None
    [record] = caplog.records
    assert record.getMessage() == "A callback of a connection failed; its client reconnects"


async def test_admission_is_asked_with_the_connection_counted(
    engine: ScriptedEngine, hub: hubs.Hub, client: NewClient
) -> None:
    one, two = client(), client()
    for each in (one, two):
        hub.admit(each.connection, 1)
    assert engine.counts[interface.CONNECTIONS] == 2
    assert [limit for limit, _ in engine.admitting] == [1, 1]
    hub.disconnect(two.connection)
    for _, ready in engine.admitting:
        ready(interface.SubscribeResult())
    assert (one.other_answers, two.other_answers) == ([interface.SubscribeResult()], [])


async def test_stop_closes_connections_with_4200(engine: ScriptedEngine) -> None:
    hub = hubs.Hub(engine)
    await hub.start()
    one = Client(hub, "1.1")
    await hub.stop()
    assert one.writer.closed is not None
    assert one.writer.closed[0] == 4200


async def until(condition: Callable[[], object]) -> None:
    async def look() -> object:
        return condition()

    await waiting.until_async(look, 5, "the timer of the hub")
