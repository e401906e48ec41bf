"""For any sequence of client frames and engine answers, the hub, the presence and the counts agree.

The hub is the real one; the engine is in memory, and answers when a test lets it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fanfare.applications import registry
from fanfare.engine import interface
from fanfare.hub import attempts, event_frames, hub
from fanfare.hub.connections import State
from fanfare.protocol import termination
from tests.unit.hub import doubles
from tests.unit.protocol import fakes
from tests.unit.protocol.test_state_machine import frames_of_clients

APP = fakes.APPLICATION.id
CLIENTS = 3
PLAIN = ["news", "cache-x", "private-x", "private-cache-x", "private-encrypted-x"]
PRESENCE = ["presence-x", "presence-cache-x"]
USERS = ["1", "2"]
OWN = [f"#server-to-user-{user_id}" for user_id in USERS]

clients = st.integers(0, CLIENTS - 1)
users = st.sampled_from(USERS)


class Client:
    """One connection, and the frames that it got."""

    def __init__(self, worker: hub.Hub, app: registry.Application) -> None:
        self.writer = doubles.FakeWriter()
        self.session = fakes.session(worker, app, self.writer)
        self.connection = self.session._connection
        self.socket_id = self.connection.socket_id

    def newest_counts(self) -> dict[str, int]:
        """The newest count of each channel."""
        heard = {}
        for frame in map(orjson.loads, self.writer.bodies):
            if frame["event"] == "pusher_internal:subscription_count":
                heard[frame["channel"]] = orjson.loads(frame["data"])["subscription_count"]
        return heard


class AnySequence(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(attempts, "REPEATED_S", 0)  # a refusal of the engine is passed on at once
        self.loop = asyncio.new_event_loop()
        self.engine = fakes.Engine()
        self.hub = hub.Hub(self.engine)
        termination.register(self.hub)
        self.app = fakes.application(
            subscription_counts=True, max_watchlist=1, client_events_per_second=10**6, client_events_burst=10**6
        )
        self.do(lambda: None, first=self.hub.start)
        self.clients = [self.connected() for _ in range(CLIENTS)]

    def do(self, act: Callable[[], Any], first: Callable[[], Any] | None = None) -> None:
        """On the loop, with all that follows from it."""

        async def all_of_it() -> None:
            if first is not None:
                await first()
            act()
            for _ in range(3):  # a client event's future, and its callback
                await asyncio.sleep(0)

        self.loop.run_until_complete(all_of_it())

    def connected(self) -> Client:
        client = Client(self.hub, self.app)
        self.do(client.session.open)
        return client

    def say(self, number: int, frame: str) -> None:
        self.do(lambda: self.clients[number].session.received(frame))

    # -- clients -------------------------------------------------------------------------------------------------------

    @rule(number=clients, channel=st.sampled_from(PLAIN + PRESENCE + OWN), good=st.booleans())
    def subscribe(self, number: int, channel: str, good: bool) -> None:
        auth = fakes.auth(channel, socket_id=self.clients[number].socket_id)
        self.say(number, fakes.subscribe(channel, auth=auth if good else "no"))

    @rule(number=clients, channel=st.sampled_from(PRESENCE), user=users)
    def subscribe_as(self, number: int, channel: str, user: str) -> None:
        data = f'{{"user_id":"{user}"}}'
        auth = fakes.auth(channel, data, socket_id=self.clients[number].socket_id)
        self.say(number, fakes.subscribe(channel, data, auth=auth))

    @rule(number=clients, channel=st.sampled_from(PLAIN + PRESENCE + OWN))
    def unsubscribe(self, number: int, channel: str) -> None:
        self.say(number, fakes.unsubscribe(channel))

    @rule(number=clients, user=users, watchlist=st.lists(users, max_size=3))
    def sign_in(self, number: int, user: str, watchlist: list[str]) -> None:
        data = fakes.text({"id": user, "watchlist": watchlist})
        self.say(number, fakes.signin(data, socket_id=self.clients[number].socket_id))

    @rule(number=clients, channel=st.sampled_from(PLAIN + PRESENCE + OWN))
    def speak(self, number: int, channel: str) -> None:
        self.say(number, fakes.client_event(channel))

    @rule(number=clients, frame=frames_of_clients)
    def say_anything(self, number: int, frame: str) -> None:
        self.say(number, frame)

    @rule(number=clients)
    def leave_and_let_another_come(self, number: int) -> None:
        self.do(self.clients[number].session.end)
        self.clients[number] = self.connected()

    # -- publishers and the engine -------------------------------------------------------------------------------------

    @rule(channel=st.sampled_from(PLAIN + PRESENCE + OWN))
    def publish(self, channel: str) -> None:
        body = event_frames.event("x", channel, "data")
        seconds = 60 if "cache-" in channel else None
        self.append(interface.Publication(APP, channel, body, cache_seconds=seconds))

    def append(self, publication: interface.Publication) -> None:
        """Whether it is written or not."""
        self.do(lambda: self.engine.append([publication]).add_done_callback(asyncio.Future.exception))

    @rule(user=users)
    def terminate(self, user: str) -> None:
        command = interface.Publication(APP, termination.COMMAND, termination.body(user), kind=interface.Kind.CONTROL)
        self.append(command)
        self.let_others_come()

    def let_others_come(self) -> None:
        """For those who were closed."""
        for number, client in enumerate(self.clients):
            if client.connection.closing:
                self.do(client.session.end)
                self.clients[number] = self.connected()

    @rule()
    def let_the_engine_think(self) -> None:
        self.engine.held = True

    @rule(down=st.booleans())
    def let_the_engine_answer(self, down: bool) -> None:
        self.engine.down = "the disk is full" if down else ""
        self.do(self.engine.release)
        self.engine.down = ""
        self.let_others_come()

    # -- invariants ----------------------------------------------------------------------------------------------------

    @invariant()
    def subscriptions_stand_where_their_state_says(self) -> None:
        for client in self.clients:
            for channel, one in client.connection.subscriptions.items():
                assert one.state is not State.LEFT
                assert (one.channel.live.get(client.connection) is one) is (one.state is State.LIVE), channel
            user = client.session._machine.user
            assert client.connection.user_id == (None if user is None else user.user_id)

    @invariant()
    def the_engine_counts_what_the_hub_holds(self) -> None:
        channels = Counter(channel for client in self.clients for channel in client.connection.subscriptions)
        assert self.engine.subscribers() == {interface.CONNECTIONS: CLIENTS, **channels}

    @invariant()
    def every_subscription_is_live_and_present_once_the_engine_has_answered(self) -> None:
        if self.engine.held:
            return
        members: dict[tuple[str, str], str] = {}
        for client in self.clients:
            connection = client.connection
            for channel, subscription in connection.subscriptions.items():
                assert subscription.state is State.LIVE
                assert not subscription.refreshing
                member = subscription.member
                if member is not None:
                    members[channel, client.socket_id] = member.user_id
            if connection.user_id is not None:
                members[interface.USERS, client.socket_id] = connection.user_id
                assert connection in self.hub.connections_of_user(APP, connection.user_id)
        assert self.engine.present() == members

    @invariant()
    def every_subscriber_has_the_newest_count(self) -> None:
        if self.engine.held:
            return
        for client in self.clients:
            heard = client.newest_counts()
            for channel in client.connection.subscriptions:
                if channel not in PRESENCE:
                    assert heard[channel] == self.engine.subscribers()[channel], channel

    def teardown(self) -> None:
        try:
            self.do(self.engine.release)
            for client in self.clients:
                self.do(client.session.end)
            self.loop.run_until_complete(self.hub.stop())
        finally:
            self.loop.close()
            self.patch.undo()
        assert self.engine.subscribers() == {}
        assert self.engine.present() == {}
        assert self.hub.statistics()["channels.now"] == 0
        assert not any(self.hub.connections_of_user(APP, user) for user in USERS)


AnySequence.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAnySequence = AnySequence.TestCase
