"""The hub: subscriptions that race with everything, the fan-out, and connections that have to go."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable

import pytest

from fanfare.engine import interface
from fanfare.hub import hub as hubs
from fanfare.hub import recovery
from tests.harness import waiting
from tests.unit.hub.doubles import APP, Client, ScriptedEngine


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture
async def hub(engine: ScriptedEngine) -> AsyncIterator[hubs.Hub]:
    hub = hubs.Hub(engine)
    await hub.start()
    yield hub
    await hub.stop()


@pytest.fixture
def client(hub: hubs.Hub) -> Callable[[], Client]:
    numbers = itertools.count(1)
    return lambda: Client(hub, f"1.{next(numbers)}")


NewClient = Callable[[], Client]


async def test_the_answer_comes_before_the_first_event_and_none_is_missed_after_it(
    engine: ScriptedEngine, client: NewClient
) -> None:
    one = client()
    one.subscribe("news")
    engine.deliver([engine.entry("news", b"before")])
    engine.answer()
    engine.deliver([engine.entry("news", b"after")])
    assert one.got == [b"subscribed news", b"after"]


async def test_only_the_first_subscriber_of_a_channel_waits_for_the_engine(
    engine: ScriptedEngine, client: NewClient
) -> None:
    one, two = client(), client()
    one.subscribe("news")
    engine.answer()
    two.subscribe("news")
    assert two.got == [b"subscribed news"]
    assert engine.attaching == []
    assert engine.counts["news"] == 2


async def test_who_is_on_several_channels_gets_what_a_read_brings_in_one_write(
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


async def test_who_is_too_slow_for_what_a_read_brings_of_several_channels_is_let_go(
    engine: ScriptedEngine, hub: hubs.Hub, client: NewClient
) -> None:
    one = client()
    for name in ("news", "sports"):
        one.subscribe(name)
        engine.answer()
    one.writer.full = True
    engine.deliver([engine.entry("news", b"n1"), engine.entry("sports", b"s1")])
    assert one.writer.closed is not None
    assert hub.statistics()["evicted.slow"] == 1


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


async def test_the_count_includes_those_who_wait(engine: ScriptedEngine, client: NewClient) -> None:
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


async def test_who_unsubscribes_while_waiting_is_not_answered_and_leaves(
    engine: ScriptedEngine, client: NewClient
) -> None:
    one = client()
    one.subscribe("presence-c", "ann")
    one.unsubscribe("presence-c")
    engine.answer()
    engine.deliver([engine.entry("presence-c", b"x")])
    assert one.answers == []
    assert one.got == []
    assert engine.left == [("presence-c", "1.1")]


async def test_subscribing_again_while_an_old_attachment_is_under_way_waits_for_the_new_one(
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
    assert one.got == [b"subscribed presence-c", b"x"]


async def test_subscribing_twice_brings_a_second_answer_and_no_second_delivery(
    engine: ScriptedEngine, client: NewClient
) -> None:
    one = client()
    one.subscribe("presence-c", "ann")
    engine.answer()
    one.subscribe("presence-c", "ann")
    engine.answer(interface.Member("ann", "null"))
    engine.deliver([engine.entry("presence-c", b"x")])
    assert one.got == [b"subscribed presence-c", b"subscribed presence-c", b"x"]
    assert engine.counts["presence-c"] == 1


async def test_a_refused_subscription_leaves_nothing_behind(
    engine: ScriptedEngine, hub: hubs.Hub, client: NewClient
) -> None:
    one = client()
    one.subscribe("presence-c", "ann")
    engine.refuse("member_limit")
    assert isinstance(one.answers[0][1], interface.Refused)
    assert engine.counts["presence-c"] == 0
    assert hub.statistics()["channels.now"] == 0
    assert not hub.is_subscribed(one.connection, "presence-c")


async def test_who_is_gone_is_not_answered(engine: ScriptedEngine, hub: hubs.Hub, client: NewClient) -> None:
    one = client()
    one.subscribe("presence-c", "ann")
    hub.disconnect(one.connection)
    hub.disconnect(one.connection)
    engine.answer()
    assert one.answers == []
    assert engine.left == [("presence-c", "1.1")]
    assert engine.counts == {"": 0, "presence-c": 0}


async def test_an_excluded_socket_gets_the_rest_of_the_read(engine: ScriptedEngine, client: NewClient) -> None:
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


async def test_applications_do_not_hear_each_other(engine: ScriptedEngine, hub: hubs.Hub) -> None:
    here, there = Client(hub, "1.1"), Client(hub, "2.1", app="2")
    for each in (here, there):
        each.subscribe("news")
        engine.answer()
    engine.deliver([engine.entry("news", b"x", app="2")])
    assert here.got == [b"subscribed news"]
    assert there.got == [b"subscribed news", b"x"]


async def test_members_are_announced_as_the_protocol_has_it(engine: ScriptedEngine, client: NewClient) -> None:
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


async def test_a_command_that_ends_connections_lets_them_have_what_came_before_it(
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


async def test_any_other_command_leaves_the_events_of_a_read_joined(
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


async def test_who_asks_hears_once_that_a_channel_moved(
    engine: ScriptedEngine, hub: hubs.Hub, client: NewClient
) -> None:
    one, other = client(), client()
    moved: list[str] = []
    hub.when_moved(one.connection, "news", moved.append)
    one.subscribe("news")
    hub.when_moved(one.connection, "news", moved.append)
    engine.answer()
    other.subscribe("news")
    engine.deliver([engine.entry("news", b"1", offset=1)])
    assert moved == [], "it asked when it was not live"
    hub.when_moved(one.connection, "news", moved.append)
    hub.when_moved(other.connection, "news", moved.append)
    engine.deliver([engine.entry("news", b"3", kind=interface.Kind.COUNT)])
    assert moved == [], "what is not kept moves nothing"
    other.unsubscribe("news")
    engine.deliver([engine.entry("news", b"2", offset=2), engine.entry("news", b"3", offset=3)])
    engine.deliver([engine.entry("news", b"4", offset=4)])
    assert moved == ["news"]


async def test_a_command_that_fails_does_not_stop_the_deliveries(
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


async def test_a_slow_reader_is_gone_at_once_and_its_transport_soon(
    engine: ScriptedEngine, hub: hubs.Hub, client: NewClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hubs, "EVICT_S", 0.0)
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
    assert hub.statistics()["evicted.slow"] == 1
    await until(lambda: slow.writer.aborted)
    assert hub.statistics()["closing.now"] == 0


async def test_replies_count_against_the_bound_too(hub: hubs.Hub, client: NewClient) -> None:
    one = client()
    one.writer.full = True
    one.connection.send(b"pong")
    one.connection.send(b"pong")
    assert one.got == [b"pong", b"bye 4100"]
    assert hub.statistics()["connections.now"] == 0


async def test_a_connection_that_the_server_gave_up_on_is_taken_out_by_the_timer(
    engine: ScriptedEngine, hub: hubs.Hub, client: NewClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hubs, "SWEEP_TURNS", 1)
    monkeypatch.setattr(hubs, "EVICT_S", 0.0)
    one = client()
    one.subscribe("presence-c", "ann")
    engine.answer()
    one.writer.gone = True
    await until(lambda: engine.left == [("presence-c", "1.1")])
    await until(lambda: one.writer.aborted)


async def test_who_wants_the_cached_event_always_asks_the_engine(
    engine: ScriptedEngine, hub: hubs.Hub, client: NewClient
) -> None:
    one, two = client(), client()
    one.subscribe("cache-c")
    engine.answer()
    answers: list[interface.SubscribeResult | interface.Refused] = []
    hub.subscribe(two.connection, "cache-c", answers.append, cached=True)
    wanted, _ = engine.attaching[0]
    assert (wanted.durable, wanted.cached) == (False, True)
    engine.answer(cached=b"x")
    assert answers == [interface.SubscribeResult(cached=b"x")]


async def test_a_slow_reader_of_a_state_channel_gets_the_newest_state_when_it_can_read_again(
    engine: ScriptedEngine, hub: hubs.Hub, client: NewClient
) -> None:
    slow, quick = client(), client()
    for each in (slow, quick):
        hub.subscribe(each.connection, "cache-c", lambda answer: None, cached=True)
        engine.answer()
    slow.writer.waiting = recovery.PACE_BYTES + 1
    added = interface.Kind.MEMBER_ADDED
    for number in range(1, 6):
        engine.deliver([engine.entry("cache-c", b"%d" % number)])
    engine.deliver([engine.entry("cache-c", b"null", kind=added, user_id="ann"), engine.entry("cache-c", b"6")])
    engine.deliver([engine.entry("cache-c", b"mine", exclude="1.1")])
    assert [body for body in slow.got if b"member" not in body] == []
    assert len(slow.got) == 1
    slow.writer.waiting = 0
    await until(lambda: slow.got[-1] == b"6")
    engine.deliver([engine.entry("cache-c", b"7")])
    assert slow.got[1:] == [b"6", b"7"]
    assert [body for body in quick.got if b"member" not in body] == [b"1", b"2", b"3", b"4", b"5", b"6", b"mine", b"7"]
    assert hub.statistics()["conflated"] == 5


async def test_subscribers_who_hear_their_number_wait_until_they_are_in_it(
    engine: ScriptedEngine, hub: hubs.Hub, client: NewClient
) -> None:
    one, two = client(), client()
    for each in (one, two):
        hub.subscribe(each.connection, "news", lambda answer: None, announce=True)
        wanted, _ = engine.attaching[0]
        assert (wanted.durable, wanted.counted) == (True, True)
        engine.answer(subscribers=1)
    engine.deliver([engine.entry("news", b"2", kind=interface.Kind.COUNT)])
    assert one.got == [
        b'{"event":"pusher_internal:subscription_count","channel":"news","data":"{\\"subscription_count\\":2}"}'
    ]


async def test_what_is_only_for_webhooks_is_not_delivered(engine: ScriptedEngine, client: NewClient) -> None:
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
    assert one.got == [b"subscribed cache-c"]
    assert two.got == [b"subscribed cache-c", b"x"]


async def test_a_watcher_hears_who_comes_and_goes_and_a_user_has_connections(
    engine: ScriptedEngine, hub: hubs.Hub, client: NewClient
) -> None:
    ann, bob = client(), client()
    answers: list[interface.SubscribeResult | interface.Refused] = []
    hub.sign_in(ann.connection, "ann", answers.append, watchlist=["bob", "cid"])
    wanted, _ = engine.attaching[0]
    assert (wanted.channel, wanted.member, wanted.watch) == (
        interface.USERS,
        interface.Member("ann", "null"),
        ("bob", "cid"),
    )
    engine.answer(online=("cid",))
    assert answers == [interface.SubscribeResult(online=("cid",))]
    hub.sign_in(bob.connection, "bob", answers.append)
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


async def test_who_goes_while_signing_in_is_not_left_online(
    engine: ScriptedEngine, hub: hubs.Hub, client: NewClient
) -> None:
    one = client()
    hub.sign_in(one.connection, "ann", one.answers.append)  # type: ignore[arg-type]
    hub.disconnect(one.connection)
    engine.answer()
    assert one.answers == []
    assert engine.left == [(interface.USERS, "1.1")]
    assert hub.connections_of_user(APP, "ann") == []


async def test_a_fence_closes_everybody_and_says_why(engine: ScriptedEngine, hub: hubs.Hub, client: NewClient) -> None:
    one = client()
    one.subscribe("presence-c", "ann")
    engine.answer()
    engine.on_gap("trimmed", None)
    assert one.writer.closed is not None
    assert one.writer.closed[0] == 4200
    assert engine.left == [("presence-c", "1.1")]
    assert hub.statistics()["gaps.trimmed"] == 1


async def test_a_fence_sends_nobody_away_before_what_is_kept_for_them_is_written(
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


async def test_an_admission_is_asked_with_the_connection_counted(
    engine: ScriptedEngine, hub: hubs.Hub, client: NewClient
) -> None:
    one, two = client(), client()
    answers: list[object] = []
    for each in (one, two):
        hub.admit(each.connection, 1, answers.append)
    assert engine.counts[interface.CONNECTIONS] == 2
    assert [limit for limit, _ in engine.admitting] == [1, 1]
    hub.disconnect(two.connection)
    for _, ready in engine.admitting:
        ready(interface.SubscribeResult())
    assert answers == [interface.SubscribeResult()]


async def test_stopping_says_goodbye(engine: ScriptedEngine) -> None:
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
