"""Subscribes with a capability token: what the state machine admits, and what the token's rights allow afterwards."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from fanfare.applications import rules
from fanfare.engine import interface
from fanfare.hub import connections
from fanfare.protocol import capabilities, effects, names, recovery, refusals
from tests.unit.protocol import fakes

ALL = frozenset(capabilities.RIGHTS)


def token(machine: fakes.Machine, *channels: str, secret: str = fakes.APPLICATION.secret, **more: Any) -> str:
    more = {"issued": machine.wall_now, "rights": ALL, **more}
    return capabilities.sign(secret, capabilities.Capability(channels, machine.wall_now + 60, **more))


def subscribe(machine: fakes.Machine, channel: str, auth: str, **more: str) -> list[effects.Effect]:
    return machine.all_effects(fakes.subscribe(channel, auth=auth, **more))


def refusal(done: list[effects.Effect]) -> str:
    """The reason in the counter of a refused subscribe."""
    [name] = [one for one in fakes.counts(done) if one.startswith("pusher.subscription_refused.")]
    return name.rpartition(".")[2]


def test_token_admits_to_the_channels_that_it_names() -> None:
    machine = fakes.Machine()
    auth = token(machine, "private-orders-*")
    [subscribed] = subscribe(machine, "private-orders-1", auth)
    assert isinstance(subscribed, effects.Subscribe)
    assert subscribed.member is None
    assert refusal(subscribe(machine, "private-news", auth)) == "channel_not_granted"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"secret": "another application's"}, "invalid_token"),
        ({"not_before": 2_000_000_000}, "early_token"),
        ({"rights": frozenset(["history"])}, "right_not_granted"),
    ],
)
def test_token_that_does_not_admit_is_refused_with_the_reason(change: dict[str, Any], reason: str) -> None:
    machine = fakes.Machine()
    assert refusal(subscribe(machine, "private-a", token(machine, "private-a", **change))) == reason


def test_token_makes_its_user_a_member_with_its_info() -> None:
    machine = fakes.Machine()
    auth = token(machine, "presence-x", user_id="42", info='{"name":"Ann"}')
    [subscribed] = subscribe(machine, "presence-x", auth, channel_data='{"user_id":"42","user_info":{"name":"Eve"}}')
    assert isinstance(subscribed, effects.Subscribe)
    assert subscribed.member == interface.Member("42", '{"name":"Ann"}')


@pytest.mark.parametrize(
    ("claims", "channel_data", "reason"),
    [
        ({"user_id": "42", "rights": frozenset(["subscribe"])}, None, "right_not_granted"),
        ({}, None, "invalid_member"),
        ({"user_id": "x" * 1_000}, None, "invalid_member"),
        ({"user_id": "42"}, '{"user_id":"7"}', "other_member"),
        ({"user_id": "42", "info": orjson.dumps("x" * 2_100).decode()}, None, "member_too_big"),
    ],
)
def test_token_without_a_valid_member_is_refused(claims: dict[str, Any], channel_data: str | None, reason: str) -> None:
    machine = fakes.Machine()
    more = {} if channel_data is None else {"channel_data": channel_data}
    assert refusal(subscribe(machine, "presence-x", token(machine, "presence-*", **claims), **more)) == reason


def test_right_to_publish_is_needed_for_client_events() -> None:
    for rights, rejected in ((ALL, False), (capabilities.DEFAULT_RIGHTS, True)):
        machine = fakes.Machine()
        subscribe(machine, "private-a", token(machine, "private-a", rights=rights))
        machine.subscribed("private-a")
        done = machine.all_effects(fakes.client_event("private-a", {}))
        assert ("pusher.client_event_rejected.right_not_granted" in fakes.counts(done)) is rejected


def test_right_to_history_is_needed_for_kept_events() -> None:
    machine = fakes.Machine()
    auth = token(machine, "private-a", rights=frozenset(["subscribe"]))
    [subscribed] = subscribe(machine, "private-a", auth)
    assert isinstance(subscribed, effects.Subscribe)
    machine.subscribed("private-a")
    done = machine.all_effects(fakes.text({"event": "pusher:history", "data": {"channel": "private-a"}}))
    assert "pusher.history_refused.right_not_granted" in fakes.counts(done)


@pytest.mark.parametrize(("rights", "recovers"), [(["subscribe"], False), (["subscribe", "history"], True)])
def test_right_to_history_is_needed_for_a_recovery(rights: list[str], *, recovers: bool) -> None:
    kept = rules.Rule("private-*", history_size=10, history_seconds=60)
    machine = fakes.Machine(fakes.application(rules=rules.Rules((kept,))))
    auth = token(machine, "private-a", rights=frozenset(rights))
    [subscribed] = machine.receive(fakes.subscribe("private-a", auth=auth, rewind={"count": 3}))
    assert isinstance(subscribed, effects.Subscribe)
    assert (subscribed.asked.recovery is not None) is recovers


@pytest.mark.parametrize(("asked", "read"), [(0, 50), (1, 1), (100, 100), (101, 50), (True, 50), ("7", 50)])
def test_limit_of_a_page_of_history_is_bounded(asked: object, read: int) -> None:
    kept = rules.Rule("kept", history_size=1_000, history_seconds=60)
    machine = fakes.Machine(fakes.application(rules=rules.Rules((kept,))))
    machine.join("kept")
    frame = fakes.text({"event": "pusher:history", "data": {"channel": "kept", "limit": asked}})
    assert machine.receive(frame) == [effects.ReadHistory("kept", None, read, None)]


def test_recovery_that_the_engine_refuses_is_counted_by_its_reason() -> None:
    kept = rules.Rule("kept", history_size=1_000, history_seconds=60)
    machine = fakes.Machine(fakes.application(rules=rules.Rules((kept,))))
    machine.receive(fakes.subscribe("kept", resume={"epoch": "a", "offset": 1}))
    result = interface.RecoveryResult(interface.Position("b", 0), reason="epoch_changed", complete=True)
    assert fakes.counts(machine.subscribed("kept", replayed=result)) == ["resume.failed.epoch_changed"]


REFUSED = interface.RecoveryResult(interface.Position("b", 0), reason="epoch_changed", complete=True)
COMPLETE = interface.RecoveryResult(interface.Position("b", 0), complete=True)


@pytest.mark.parametrize(
    ("asked", "result", "failed", "counted"),
    [
        (recovery.Asked(recovering=True), REFUSED, True, True),
        (recovery.Asked(recovering=True, reason="record_full"), None, True, True),
        (recovery.Asked(recovering=True), COMPLETE, False, False),
        (recovery.Asked(recovering=True), None, False, False),
        (recovery.Asked(recovering=False), REFUSED, False, False),
        (recovery.Asked(recovering=True, with_stream=True), REFUSED, False, True),
    ],
)
def test_failed_recovery_is_reported_once(
    asked: recovery.Asked,
    result: interface.RecoveryResult | None,
    failed: bool,
    counted: bool,
) -> None:
    machine = fakes.Machine()
    machine.receive(fakes.subscribe("kept"))
    machine.connection.subscriptions["kept"].request = asked
    done = machine.subscribed("kept", replayed=result)
    assert ("pusher:resume_failed" in [frame["event"] for frame in fakes.sent(done)]) is failed
    assert bool(fakes.counts(done)) is counted


@pytest.mark.parametrize(
    ("recovers", "result", "with_state"),
    [(True, COMPLETE, False), (True, REFUSED, True), (True, None, True), (False, COMPLETE, True)],
)
def test_state_of_a_cache_channel_is_sent_unless_the_recovery_brings_it(
    recovers: bool, result: interface.RecoveryResult | None, with_state: bool
) -> None:
    machine = fakes.Machine()
    machine.receive(fakes.subscribe("cache-a"))
    if recovers:
        request = interface.RecoveryRequest(after=interface.Position("b", 0))
        machine.connection.subscriptions["cache-a"].request = recovery.Asked(connections.Recovery(request))
    sent = fakes.sent(machine.subscribed("cache-a", replayed=result, cached=b'{"event":"state"}'))
    assert ([frame["event"] for frame in sent[1:]] == ["state"]) is with_state


def test_presence_channel_has_its_stream_in_a_frame_of_its_own_too() -> None:
    machine = fakes.Machine()
    machine.receive(fakes.subscribe("presence-a", '{"user_id":"42"}'))
    machine.connection.subscriptions["presence-a"].request = recovery.Asked(with_stream=True)
    succeeded, stream = fakes.sent(machine.subscribed("presence-a"))
    assert stream["event"] == "pusher:stream"
    assert orjson.loads(stream["data"]) == orjson.loads(succeeded["data"])["stream"]


def cancel(machine: fakes.Machine, channel: object, stream_id: object) -> list[str]:
    frame = fakes.text({"event": names.CANCEL_EVENT, "channel": channel, "data": {"id": stream_id}})
    return fakes.counts(machine.all_effects(frame))


def test_stream_is_cancelled_by_subscribers_with_the_right_to_publish() -> None:
    growing = rules.Rule("private-*", history_size=10, history_seconds=60, stream_cancel=True)
    machine = fakes.Machine(fakes.application(rules=rules.Rules((growing,))))
    assert cancel(machine, "private-a", "1") == ["pusher.client_event_rejected.not_subscribed"]
    subscribe(machine, "private-a", token(machine, "private-a", rights=capabilities.DEFAULT_RIGHTS))
    assert cancel(machine, "private-a", "1") == ["pusher.client_event_rejected.not_subscribed"], "the engine answers"
    machine.subscribed("private-a")
    assert cancel(machine, "private-a", "1") == ["pusher.client_event_rejected.right_not_granted"]
    subscribe(machine, "private-b", token(machine, "private-b"))
    machine.subscribed("private-b")
    assert cancel(machine, "private-b", "1") == []
    for channel, stream_id in ((7, "1"), ("private-b", 7)):
        assert cancel(machine, channel, stream_id) == ["pusher.error.invalid_client_event"]


def test_later_token_replaces_the_rights_of_the_earlier_one() -> None:
    machine = fakes.Machine()
    subscribe(machine, "private-a", token(machine, "private-a"))
    machine.subscribed("private-a")
    [again] = subscribe(machine, "private-a", token(machine, "private-a", rights=frozenset(["subscribe"])))
    assert isinstance(again, effects.Subscribe)
    subscription = machine.connection.subscriptions["private-a"]
    machine.protocol.refreshed(subscription, interface.SubscribeResult(), again.asked)
    assert not subscription.request.may(capabilities.PUBLISH)


# -- revocation --------------------------------------------------------------------------------------------------------


class Revoked:
    """The answers of the worker's revocations: False while unknown."""

    def __init__(self, machine: fakes.Machine) -> None:
        self.known = self.revoked = False
        machine.protocol._check_token = self.answer

    def answer(self, app: str, capability: capabilities.Capability) -> bool:
        if self.known and self.revoked:
            raise refusals.InvalidToken("The application revoked this token", reason="revoked_token")
        return self.known


def test_subscribe_waits_until_the_revocations_are_read() -> None:
    machine = fakes.Machine()
    revoked = Revoked(machine)
    [reads] = subscribe(machine, "private-a", token(machine, "private-a", token_id="1"))
    assert isinstance(reads, effects.ReadRevocations)
    assert machine.states() == {}
    revoked.known = True
    machine.done(machine.protocol.revocations_read("private-a"))
    assert machine.states() == {"private-a": connections.State.ATTACHING}
    assert machine.protocol.revocations_read("private-a") == effects.NOTHING


def test_token_that_proves_to_be_revoked_is_refused() -> None:
    machine = fakes.Machine()
    revoked = Revoked(machine)
    auth = token(machine, "private-a", token_id="1")
    subscribe(machine, "private-a", auth)
    revoked.known = revoked.revoked = True
    assert refusal(list(machine.protocol.revocations_read("private-a"))) == "revoked_token"


def test_unknown_revocations_close_the_connection_with_4100() -> None:
    machine = fakes.Machine()
    Revoked(machine)
    subscribe(machine, "private-a", token(machine, "private-a", token_id="1"))
    done = machine.protocol.revocations_read("private-a", "The database is away")
    assert [one.code for one in done if isinstance(one, effects.Close)] == [4100]


def test_unsubscribe_while_the_revocations_are_read_drops_the_subscribe() -> None:
    machine = fakes.Machine()
    revoked = Revoked(machine)
    subscribe(machine, "private-a", token(machine, "private-a", token_id="1"))
    machine.all_effects(fakes.unsubscribe("private-a"))
    revoked.known = True
    assert machine.protocol.revocations_read("private-a") == effects.NOTHING


def test_subscribes_that_wait_count_as_subscriptions() -> None:
    machine = fakes.Machine(max_subscriptions=1)
    Revoked(machine)
    auth = token(machine, "private-*", token_id="1")
    subscribe(machine, "private-a", auth)
    assert refusal(subscribe(machine, "private-b", auth)) == "too_many_subscriptions"


def test_subscription_ends_with_its_token() -> None:
    machine = fakes.Machine()
    subscribe(machine, "private-a", token(machine, "private-a"))
    done = machine.done(machine.protocol.capability_ended("private-a", "expired_token", "The token has expired"))
    assert machine.states() == {}
    error = next(frame for frame in fakes.sent(done) if frame["event"] == "pusher:subscription_error")
    assert (error["channel"], error["data"]["type"], error["data"]["status"]) == ("private-a", "TokenExpired", 401)


def update(machine: fakes.Machine, channel: object, **more: object) -> list[str]:
    return fakes.counts(machine.all_effects(fakes.text({"event": names.STATE_EVENT, "channel": channel, **more})))


def test_state_is_updated_by_members_with_the_right_to_publish() -> None:
    machine = fakes.Machine()
    assert update(machine, "presence-a", data=1) == ["pusher.client_event_rejected.not_subscribed"]
    subscribe(machine, "presence-a", token(machine, "presence-a", user_id="1"))
    assert update(machine, "presence-a", data=1) == ["pusher.client_event_rejected.not_subscribed"], "not yet"
    machine.subscribed("presence-a")
    assert update(machine, "presence-a", data=1) == []
    for channel, more in ((7, {"data": 1}), ("presence-a", {})):
        assert update(machine, channel, **more) == ["pusher.error.invalid_client_event"]
    subscribe(machine, "private-a", token(machine, "private-a"))
    machine.subscribed("private-a")
    assert update(machine, "private-a", data=1) == ["pusher.client_event_rejected.not_subscribed"], "it has no members"
    rights = frozenset(["subscribe", "presence"])
    subscribe(machine, "presence-b", token(machine, "presence-b", user_id="1", rights=rights))
    machine.subscribed("presence-b")
    assert update(machine, "presence-b", data=1) == ["pusher.client_event_rejected.right_not_granted"]
    machine.registry.put(fakes.application(client_events=False))
    assert update(machine, "presence-a", data=1) == ["pusher.client_event_rejected.disabled"]


def test_largest_state_and_the_longest_name_of_a_client_event_are_allowed() -> None:
    size = len('{"state":"1234"}')
    machine = fakes.Machine(fakes.application(max_member_bytes=size, max_event_name=10))
    subscribe(machine, "presence-a", token(machine, "presence-a", user_id="1"))
    machine.subscribed("presence-a")
    assert update(machine, "presence-a", data="1234") == []
    assert update(machine, "presence-a", data="12345") == ["pusher.client_event_rejected.too_big"]
    for event, counts in (("client-abc", []), ("client-abcd", ["pusher.client_event_rejected.name_too_long"])):
        assert fakes.counts(machine.all_effects(fakes.client_event("presence-a", event=event))) == counts


def test_refused_subscribe_is_counted_with_what_the_client_sent_as_proof() -> None:
    done = fakes.Machine().all_effects(fakes.subscribe("private-a", auth="k:wrong", user_data=7))
    [count] = [effect for effect in done if isinstance(effect, effects.Count)]
    assert count.evidence == {"auth": "k:wrong"}
