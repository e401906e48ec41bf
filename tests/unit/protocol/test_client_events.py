"""Events from a client to the other subscribers."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from fanfare.applications import rules
from fanfare.engine import errors, interface
from fanfare.protocol import effects
from tests.unit.protocol import fakes
from tests.unit.protocol.workers import Worker

ANN = '{"user_id":"42"}'


def publication(wanted: list[effects.Effect]) -> dict[str, Any]:
    (effect,) = wanted
    assert isinstance(effect, effects.PublishClientEvent)
    frame: dict[str, Any] = orjson.loads(effect.publication.body)
    assert frame.get("user_id") == effect.publication.user_id
    return frame


def error(wanted: list[effects.Effect]) -> dict[str, Any]:
    (frame,) = fakes.sent(wanted)
    assert len(wanted) == 1
    assert frame["event"] == "pusher:error"
    data: dict[str, Any] = frame["data"]
    return data


@pytest.mark.parametrize(
    "data", ["text", '{"on":true}', {"on": True}, [1, None], 1, 1.5, 2**63, None, True, "", "ü\u2028", {}]
)
def test_data_is_relayed_as_the_json_value_that_it_was(data: Any) -> None:
    machine = fakes.Machine()
    machine.join("private-x")
    assert publication(machine.receive(fakes.client_event("private-x", data))) == {
        "event": "client-x",
        "channel": "private-x",
        "data": data,
    }


def test_presence_channel_adds_the_user_id_of_the_subscription() -> None:
    machine = fakes.Machine()
    machine.join("presence-x", ANN, fakes.member("42"))
    frame = {"event": "client-x", "channel": "presence-x", "data": {}, "user_id": "7", "other": 1}
    assert publication(machine.receive(fakes.text(frame))) == {
        "event": "client-x",
        "channel": "presence-x",
        "data": {},
        "user_id": "42",
    }


def test_private_channel_adds_no_user_id() -> None:
    machine = fakes.Machine()
    machine.join("private-x", ANN)
    frame = {"event": "client-x", "channel": "private-x", "data": {}, "user_id": "7"}
    assert "user_id" not in publication(machine.receive(fakes.text(frame)))


def test_client_events_are_refused_until_the_application_enables_them() -> None:
    machine = fakes.Machine(fakes.application(client_events=False))
    machine.join("private-x")
    said = error(machine.receive(fakes.client_event("private-x")))
    assert said["code"] is None
    assert "you must enable this feature" in said["message"]
    machine.registry.put(fakes.application(client_events=True))
    publication(machine.receive(fakes.client_event("private-x")))


@pytest.mark.parametrize("channel", ["news", "cache-x", "private-encrypted-x", "private-encrypted-cache-x", "#x"])
def test_channel_must_be_private_or_presence_and_not_encrypted(channel: str) -> None:
    machine = fakes.Machine()
    machine.join(channel)
    said = error(machine.receive(fakes.client_event(channel)))
    assert said["code"] is None
    assert channel in said["message"]


def test_sender_must_be_subscribed() -> None:
    machine = fakes.Machine()
    machine.receive(fakes.subscribe("private-x"))  # not answered yet
    machine.join("private-y")
    machine.receive(fakes.unsubscribe("private-y"))
    for channel in ("private-x", "private-y", "presence-never"):
        assert error(machine.receive(fakes.client_event(channel)))["code"] == 4009


def test_name_that_is_too_long_is_refused_with_both_numbers_the_channel_and_the_event() -> None:
    machine = fakes.Machine()
    machine.join("private-x")
    said = error(machine.receive(fakes.client_event("private-x", event="client-" + "x" * 194)))
    assert said["code"] == 4301
    assert "201 characters; 200 are allowed" in said["message"]
    assert "private-x" in said["message"]
    assert "client-xxx" in said["message"]


@pytest.mark.parametrize(("data", "size"), [("ü" * 6, 12), ({"a": 12345}, 11)])
def test_data_that_is_too_big_is_refused_with_both_numbers_in_bytes(data: Any, size: int) -> None:
    machine = fakes.Machine(fakes.application(max_event_bytes=size - 1))
    machine.join("private-x")
    said = error(machine.receive(fakes.client_event("private-x", data)))
    assert said["code"] == 4301
    assert f"{size} bytes; {size - 1} are allowed" in said["message"]
    assert "private-x" in said["message"]
    assert "client-x" in said["message"]
    machine.registry.put(fakes.application(max_event_bytes=size))
    publication(machine.receive(fakes.client_event("private-x", data)))


def test_data_that_is_nested_too_deeply_is_refused() -> None:
    machine = fakes.Machine()
    machine.join("private-x")
    for depth in range(250, 260):  # about where JSON can be read and not written
        deep = "[" * depth + "]" * depth
        machine.now += 1
        machine.receive(f'{{"event":"client-x","channel":"private-x","data":{deep}}}')
    deep = "[" * 500 + "]" * 500
    said = error(machine.receive(f'{{"event":"client-x","channel":"private-x","data":{deep}}}'))
    assert "too deeply" in said["message"]


def test_each_event_over_the_rate_limit_is_answered() -> None:
    machine = fakes.Machine()
    machine.join("private-x")
    answers = [machine.receive(fakes.client_event("private-x")) for _ in range(50)]
    assert all(isinstance(answer[0], effects.PublishClientEvent) for answer in answers[:20])
    assert [error(answer) for answer in answers[20:]] == [
        {"code": 4301, "message": "Client event rejected due to rate limit"}
    ] * 30
    machine.now += 1.0
    answers = [machine.receive(fakes.client_event("private-x")) for _ in range(50)]
    assert sum(isinstance(answer[0], effects.PublishClientEvent) for answer in answers) == 10


def test_event_refused_for_another_reason_takes_no_token() -> None:
    machine = fakes.Machine()
    machine.join("private-x")
    for _ in range(100):
        machine.receive(fakes.client_event("private-y"))
    publication(machine.receive(fakes.client_event("private-x")))


@pytest.mark.parametrize(
    "fields", [{"data": 1}, {"channel": 5, "data": 1}, {"channel": None, "data": 1}, {"channel": "private-x"}]
)
def test_client_event_must_contain_channel_and_data(fields: dict[str, Any]) -> None:
    machine = fakes.Machine()
    machine.join("private-x")
    said = error(machine.receive(fakes.text({"event": "client-x", **fields})))
    assert said == {"code": None, "message": "Invalid client event: it must contain channel and data"}


def test_event_that_the_engine_refused_is_reported_to_its_sender() -> None:
    machine = fakes.Machine()
    said = error(fakes.without_counts(machine.protocol.not_published("client-x", "private-x", "the disk is full")))
    assert said["code"] is None
    assert "the disk is full" in said["message"]


def test_client_events_are_kept_where_the_present_rule_says_so() -> None:
    keeps = rules.Rule("private-*", history_size=10, history_seconds=60, client_events=True)
    other = rules.Rule("private-*", history_size=10, history_seconds=60)
    machine = fakes.Machine()
    machine.join("private-x")
    for rule, retention in ((keeps, keeps.retention), (other, None), (keeps, keeps.retention)):
        machine.registry.put(fakes.application(rules=rules.Rules((rule,))))
        machine.now += 1
        [effect] = machine.receive(fakes.client_event("private-x"))
        assert isinstance(effect, effects.PublishClientEvent)
        assert effect.publication.retention == retention


def test_refusals_are_counted() -> None:
    machine = fakes.Machine()
    machine.join("private-x")
    assert fakes.counts(machine.all_effects(fakes.client_event("private-y"))) == [
        "pusher.client_event_rejected.not_subscribed"
    ]


def updating(data: Any, event: str = "client-fanfare-state", channel: str = "presence-x") -> str:
    return fakes.text({"event": event, "channel": channel, "data": data})


def test_state_of_a_member_goes_beside_what_its_backend_signed() -> None:
    machine = fakes.Machine()
    machine.join(
        "presence-x",
        '{"user_id":"42","user_info":{"name":"Ann","state":"signed"}}',
        interface.Member("42", '{"name":"Ann","state":"signed"}'),
    )
    (update,) = machine.receive(updating({"typing": True, "name": "Ben"}))
    assert isinstance(update, effects.UpdateMember)
    assert (update.channel, update.user_id) == ("presence-x", "42")
    assert orjson.loads(update.info) == {"name": "Ann", "state": {"typing": True, "name": "Ben"}}


@pytest.mark.parametrize(
    ("error", "reason"),
    [(errors.EngineUnavailable("the disk is full"), "the disk is full"), (RuntimeError("a fault"), "internal error")],
)
async def test_update_of_a_member_that_fails_is_reported(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    def fail(*_: object) -> bool:
        raise error

    monkeypatch.setattr(worker.engine, "update_member", fail)
    worker.registry.put(fakes.application(client_events=True))
    browser = await worker.connected()
    await browser.subscribe("presence-x", ANN)
    browser.send(updating({"typing": True}))
    frame = await browser.frame("pusher:error")
    lost = 'Client event "client-fanfare-state" on channel "presence-x" was lost: '
    assert frame["data"] == {"code": None, "message": lost + reason}
    assert worker.hub.counters["pusher.member_updates"] == 1


def test_state_over_the_size_of_a_member_is_refused_with_both_numbers() -> None:
    machine = fakes.Machine()
    machine.join("presence-x", ANN, fakes.member("42"))
    message = fakes.sent(machine.receive(updating("x" * 3_000)))[0]["data"]["message"]
    assert "bytes; 2048 are allowed" in message


def test_subscriber_cancels_a_stream_only_where_the_channel_rule_says_so() -> None:
    for allowed in (False, True):
        rule = rules.Rule("private-*", 10, 60, stream_cancel=allowed)
        machine = fakes.Machine()
        machine.registry.put(fakes.application(rules=rules.Rules((rule,))))
        machine.join("private-x")
        wanted = machine.receive(updating({"id": "a"}, "client-fanfare-cancel", "private-x"))
        if allowed:
            assert list(wanted) == [effects.CancelStream("private-x", "a")]
        else:
            assert "does not let subscribers cancel" in fakes.sent(wanted)[0]["data"]["message"]
