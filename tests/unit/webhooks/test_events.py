"""From an entry of the log to the event of a webhook."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from fanfare.engine import interface
from fanfare.webhooks import events


def entry(kind: interface.Kind, channel: str = "news", **more: Any) -> interface.Entry:
    fields = {"offset": None, "user_id": None, "exclude": None, "body": b"", **more}
    return interface.Entry(id=7, kind=kind, app="42", channel=channel, **fields)


def payload(*args: Any, **more: Any) -> Any:
    event = events.of(entry(*args, **more))
    assert event is not None
    return orjson.loads(event.payload)


@pytest.mark.parametrize(
    ("kind", "more", "expected"),
    [
        (interface.Kind.OCCUPIED, {}, {"name": "channel_occupied", "channel": "news"}),
        (interface.Kind.VACATED, {}, {"name": "channel_vacated", "channel": "news"}),
        (interface.Kind.CACHE_MISS, {}, {"name": "cache_miss", "channel": "news"}),
        (
            interface.Kind.MEMBER_ADDED,
            {"user_id": "ann", "body": b'{"name":"Ann"}'},
            {"name": "member_added", "channel": "news", "user_id": "ann"},
        ),
        (
            interface.Kind.MEMBER_REMOVED,
            {"user_id": "ann"},
            {"name": "member_removed", "channel": "news", "user_id": "ann"},
        ),
        (
            interface.Kind.COUNT,
            {"body": b"17"},
            {"name": "subscription_count", "channel": "news", "subscription_count": 17},
        ),
    ],
)
def test_each_kind_has_the_fields_of_the_protocol(kind: interface.Kind, more: Any, expected: Any) -> None:
    assert payload(kind, **more) == expected


def test_object_in_a_client_event_becomes_json_text_for_typed_sdks() -> None:
    body = orjson.dumps({"event": "client-typing", "channel": "presence-a", "data": {"on": True}, "user_id": "ann"})
    assert payload(interface.Kind.CLIENT_EVENT, "presence-a", user_id="ann", exclude="1.2", body=body) == {
        "name": "client_event",
        "channel": "presence-a",
        "event": "client-typing",
        "data": '{"on":true}',
        "socket_id": "1.2",
        "user_id": "ann",
    }


def test_text_in_a_client_event_stays_and_private_channels_name_no_user() -> None:
    body = orjson.dumps({"event": "client-text", "channel": "private-a", "data": "hello"})
    event = payload(interface.Kind.CLIENT_EVENT, "private-a", exclude="1.2", body=body)
    assert event["data"] == "hello"
    assert "user_id" not in event


@pytest.mark.parametrize(
    "unreported",
    [
        entry(interface.Kind.EVENT),
        entry(interface.Kind.CONTROL, "application.changed"),
        entry(interface.Kind.MEMBER_ADDED, interface.USERS, user_id="ann"),
        entry(interface.Kind.OCCUPIED, "#server-to-user-ann"),
    ],
)
def test_publications_commands_and_internal_channels_are_not_reported(unreported: interface.Entry) -> None:
    assert events.of(unreported) is None


def test_key_is_equal_only_for_a_removal_and_the_event_that_cancels_it() -> None:
    left = events.of(entry(interface.Kind.MEMBER_REMOVED, user_id="ann"))
    back = events.of(entry(interface.Kind.MEMBER_ADDED, user_id="ann"))
    other = events.of(entry(interface.Kind.MEMBER_ADDED, user_id="ben"))
    empty = events.of(entry(interface.Kind.VACATED))
    assert left and back and other and empty
    assert left.key == back.key
    assert len({left.key, other.key, empty.key}) == 3
