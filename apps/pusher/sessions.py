"""A protocol and its connection at the hub: does what the one wants with the other."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Sequence

from apps.engine import errors as engine_errors
from apps.engine import interface
from apps.hub import hub as hubs
from apps.pusher import effects, protocol, refusals

logger = logging.getLogger(__name__)


class Session:
    """One connected client, from the accepted handshake to the end. `address` is for the log."""

    __slots__ = ("_address", "_authorization_timer", "_connection", "_hub", "_protocol")

    def __init__(self, hub: hubs.Hub, connection: hubs.Connection, machine: protocol.Protocol, address: str) -> None:
        self._hub = hub
        self._connection = connection
        self._protocol = machine
        self._address = address
        self._authorization_timer: asyncio.TimerHandle | None = None

    def open(self) -> None:
        """Take a place at the hub, and tell the client as soon as there is one."""
        self._hub.connect(self._connection)
        limit = self._protocol.application.limits.max_connections
        if limit is None:
            self._do(self._protocol.established())
        else:
            self._hub.admit(self._connection, limit, self._admitted)

    def received(self, text: str) -> None:
        if not self._connection.closing:
            self._do(self._protocol.received(text))

    def received_binary(self) -> None:
        if not self._connection.closing:
            self._do(self._protocol.received_binary())

    def close(self, code: int, message: str) -> None:
        """Say why in a `pusher:error`, and close the WebSocket."""
        if not self._connection.closing:
            refusals.note(self._hub, code, message, self._address)
            self._connection.close(code, message)

    def end(self) -> None:
        """The server below says that the client is gone."""
        # After a close of our own it says so at once, whether or not the client reads. The hub has forgotten such a
        # connection already, and must go on watching its transport: told of its end it would let a stalled one stay.
        if not self._connection.closing:
            self._hub.disconnect(self._connection)
        self._stop_authorization_timer()

    def _do(self, wanted: Sequence[effects.Effect]) -> None:
        connection = self._connection
        for effect in wanted:
            match effect:
                case effects.Send(body):
                    connection.send(body)
                case effects.Subscribe():
                    self._subscribe(effect)
                case effects.Unsubscribe(channel):
                    self._hub.unsubscribe(connection, channel)
                case effects.SignIn(user_id, watchlist):
                    self._hub.sign_in(connection, user_id, self._signed_in, watchlist=watchlist)
                case effects.StartAuthorizationTimer(seconds):
                    loop = asyncio.get_running_loop()
                    self._authorization_timer = loop.call_later(seconds, self._not_authorized_in_time)
                case effects.StopAuthorizationTimer():
                    self._stop_authorization_timer()
                case effects.PublishClientEvent():
                    self._publish(effect)
                case effects.Count(name, detail):
                    self._hub.count(name)
                    if detail:
                        logger.debug("%s: %s: %s", connection.socket_id, name, detail)
                case effects.Close(code, message):
                    self.close(code, message)

    def _subscribe(self, effect: effects.Subscribe) -> None:
        self._hub.subscribe(
            self._connection,
            effect.channel,
            functools.partial(self._answered, effect.channel),
            member=effect.member,
            member_limit=effect.member_limit,
            cached=effect.cached,
            announce=effect.announce,
        )

    # -- the authorization timer ---------------------------------------------------------------------------------------

    def _not_authorized_in_time(self) -> None:
        self._authorization_timer = None
        self._do(self._protocol.not_authorized_in_time())

    def _stop_authorization_timer(self) -> None:
        if self._authorization_timer is not None:
            self._authorization_timer.cancel()
            self._authorization_timer = None

    # -- what the hub answers ------------------------------------------------------------------------------------------

    def _admitted(self, outcome: interface.Attached | interface.Refused) -> None:
        if isinstance(outcome, interface.Refused):
            self._do(self._protocol.not_admitted(outcome))
        else:
            self._do(self._protocol.established())

    def _answered(self, channel: str, outcome: interface.Attached | interface.Refused) -> None:
        if isinstance(outcome, interface.Refused):
            self._do(self._protocol.refused(channel, outcome))
        else:
            self._do(self._protocol.subscribed(channel, outcome))

    def _signed_in(self, outcome: interface.Attached | interface.Refused) -> None:
        if isinstance(outcome, interface.Refused):
            self._do(self._protocol.not_signed_in(outcome))
        else:
            self._do(self._protocol.signed_in(outcome))

    # -- client events -------------------------------------------------------------------------------------------------

    def _publish(self, effect: effects.PublishClientEvent) -> None:
        """Nobody waits: the client's next frame is read while the engine writes, and the log keeps their order."""
        publication = interface.Publication(
            app=self._connection.app,
            channel=effect.channel,
            body=effect.body,
            kind=interface.Kind.CLIENT_EVENT,
            user_id=effect.user_id,
            exclude=self._connection.socket_id,
        )
        try:
            done = asyncio.ensure_future(self._hub.publish([publication]))
        except engine_errors.EngineError as error:
            self._do(self._protocol.not_published(effect, str(error)))
        else:
            done.add_done_callback(functools.partial(self._published, effect))

    def _published(self, effect: effects.PublishClientEvent, done: asyncio.Future[list[interface.Receipt]]) -> None:
        if done.cancelled():
            return
        try:
            done.result()  # an error that is not the engine's is a fault here, and the event loop reports it
        except engine_errors.EngineError as error:
            self._do(self._protocol.not_published(effect, str(error)))
