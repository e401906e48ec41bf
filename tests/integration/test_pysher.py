"""Pysher, a Python subscriber: protocol 6, without an auth endpoint, signs with the secret itself."""

from __future__ import annotations

import contextlib
import json
import queue
from collections.abc import Callable, Iterator
from typing import Any

import pusher
import pysher
import pytest

from tests.harness import sdk, servers

Name = Callable[[str], str]
Subscribe = Callable[..., "Subscription"]

PATIENCE = 30.0  # seconds


class Subscription:
    """A Pysher client on one channel, with its events in order."""

    def __init__(self, client: pysher.Pusher, channel: str, events: tuple[str, ...]) -> None:
        self._client = client
        self._name = channel
        self._events = ("pusher_internal:subscription_succeeded", *events)
        self._received: queue.Queue[tuple[str, Any]] = queue.Queue()
        # In Pysher's thread, as in its documentation; elsewhere the answer can come before the handler is bound.
        client.connection.bind("pusher:connection_established", self._subscribe)
        client.connect()
        self.snapshot = self.next("pusher_internal:subscription_succeeded")

    def _subscribe(self, _: str) -> None:
        channel = self._client.subscribe(self._name)
        for event in self._events:
            channel.bind(event, self._take(event))

    def _take(self, event: str) -> Callable[[Any], None]:
        return lambda data: self._received.put((event, data))

    def next(self, event: str) -> Any:
        name, data = self._received.get(timeout=PATIENCE)
        assert name == event
        return json.loads(data)

    def trigger(self, event: str, data: str) -> None:
        self._client.channel(self._name).trigger(event, data)

    def leave(self) -> None:
        sdk.close_pysher(self._client)


@contextlib.contextmanager
def subscribing(server: servers.Server) -> Iterator[Subscribe]:
    """`subscribe(channel, *events, member=None)` creates a client for each subscription."""
    with contextlib.ExitStack() as stack:

        def begin(channel: str, *events: str, member: dict[str, Any] | None = None) -> Subscription:
            client = pysher.Pusher(
                key=server.application.key,
                secret=server.application.secret,
                custom_host=servers.HOST,
                port=server.port,
                secure=False,
                user_data=member,
            )
            subscription = Subscription(client, channel, events)
            stack.callback(subscription.leave)
            return subscription

        yield begin


@pytest.fixture
def subscribe(server: servers.Server) -> Iterator[Subscribe]:
    with subscribing(server) as begin:
        yield begin


def test_pysher_gets_the_events_of_a_public_channel(subscribe: Subscribe, api: pusher.Pusher, name: Name) -> None:
    channel = name("news")
    subscription = subscribe(channel, "created")
    api.trigger(channel, "created", {"id": 1})
    assert subscription.next("created") == {"id": 1}


def test_pysher_subscribes_to_a_private_channel(subscribe: Subscribe, api: pusher.Pusher, name: Name) -> None:
    channel = name("private-orders")
    subscription = subscribe(channel, "created")
    api.trigger(channel, "created", {"id": 2})
    assert subscription.next("created") == {"id": 2}


def test_pysher_member_gets_member_added_and_removed(subscribe: Subscribe, server: servers.Server, name: Name) -> None:
    room = name("presence-room")
    changes = ("pusher_internal:member_added", "pusher_internal:member_removed")
    ann = subscribe(room, *changes, member={"user_id": "ann", "user_info": {"name": "Ann"}})
    assert ann.snapshot["presence"]["ids"] == ["ann"]

    bob = subscribe(room, member={"user_id": "bob", "user_info": {"name": "Bob"}})
    assert bob.snapshot["presence"]["count"] == 2
    assert ann.next("pusher_internal:member_added") == {"user_id": "bob", "user_info": {"name": "Bob"}}

    bob.leave()
    assert ann.next("pusher_internal:member_removed") == {"user_id": "bob"}


def test_client_event_of_pysher_reaches_other_subscribers(subscribe: Subscribe, name: Name) -> None:
    channel = name("private-room")
    speaker = subscribe(channel)
    listener = subscribe(channel, "client-typing")
    speaker.trigger("client-typing", json.dumps({"on": True}))
    assert listener.next("client-typing") == {"on": True}
