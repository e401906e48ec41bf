"""Subscribes with a capability token: what the state machine admits, and what the token's rights allow afterwards."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from fanfare.engine import interface
from fanfare.hub import connections
from fanfare.protocol import capabilities, effects, refusals
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
    assert subscribed.asked.recovery is None
    machine.subscribed("private-a")
    done = machine.all_effects(fakes.text({"event": "pusher:history", "data": {"channel": "private-a"}}))
    assert "pusher.history_refused.right_not_granted" in fakes.counts(done)


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
