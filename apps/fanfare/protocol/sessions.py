"""A protocol and its connection at the hub: does what the one wants with the other."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fanfare.engine import errors as engine_errors
from fanfare.engine import interface
from fanfare.hub import connections, history_pages
from fanfare.hub import hub as hubs
from fanfare.protocol import effects, page_sessions, recovery, refusal_log, server_frames, state_machine
from fanfare.sockets import frames as sockets

logger = logging.getLogger(__name__)

# A ping as the vendor's clients write it: of an idle connection it is all that ever comes. Before the connection is
# open it has to wait, for nothing may come before the greeting.
READY_ANSWERS = {b'{"event":"pusher:ping","data":{}}': sockets.text(server_frames.PONG)}


class Session:
    """One connected client, from the accepted handshake to the end. `address` is for the log."""

    __slots__ = (
        "_address",
        "_authorization_timer",
        "_connection",
        "_hub",
        "_protocol",
        "_reading",
        "_resume",
        "answers",
    )

    def __init__(
        self,
        hub: hubs.Hub,
        connection: hubs.Connection,
        machine: state_machine.StateMachine,
        address: str,
        resume: page_sessions.PageSession | None = None,
    ) -> None:
        self.answers: Mapping[bytes, bytes] = {}  # see fanfare.sockets.protocol.Listener
        self._resume = resume
        self._reading: asyncio.Task[None] | None = None  # of a page of history: one at a time
        self._hub = hub
        self._connection = connection
        self._protocol = machine
        self._address = address
        self._authorization_timer: asyncio.TimerHandle | None = None

    def open(self) -> None:
        """Take a place at the hub, and tell the client as soon as there is one."""
        self._hub.connect(self._connection)
        if self._resume is None:
            self._admit()
        else:
            self._resume.begin(self._looked_up)

    def _looked_up(self) -> None:
        if self._resume is not None:
            self._protocol.resumption = self._resume.resumption
        self._admit()

    def _admit(self) -> None:
        limit = self._protocol.application.limits.max_connections
        if limit is None:
            self._established()
        else:
            self._hub.admit(self._connection, limit, self._admitted)

    def _established(self) -> None:
        self._do(self._protocol.established())
        self.answers = READY_ANSWERS

    def received(self, text: str) -> None:
        if not self._connection.closing:
            self._do(self._protocol.received(text))

    def received_binary(self) -> None:
        if not self._connection.closing:
            self._do(self._protocol.received_binary())

    def close(self, code: int, message: str) -> None:
        """Say why in a `pusher:error`, and close the WebSocket."""
        if not self._connection.closing:
            refusal_log.note(self._hub, code, message, self._address)
            self._connection.close(code, message)

    def end(self) -> None:
        """The server below says that the client is gone."""
        # After a close of our own it says so at once, whether or not the client reads. The hub has forgotten such a
        # connection already, and must go on watching its transport: told of its end it would let a stalled one stay.
        if not self._connection.closing:
            self._hub.disconnect(self._connection)
        self._stop_authorization_timer()
        if self._resume is not None:
            self._resume.end()
        if self._reading is not None:
            self._reading.cancel()

    def _do(self, wanted: Sequence[effects.Effect]) -> None:
        for effect in wanted:
            _DO[type(effect)](self, effect)

    def _send(self, effect: effects.Send) -> None:
        self._connection.send(effect.body)

    def _close(self, effect: effects.Close) -> None:
        self.close(effect.code, effect.message)

    def _count(self, effect: effects.Count) -> None:
        self._hub.count(effect.name)
        if effect.detail:
            logger.debug("%s: %s: %s", self._connection.socket_id, effect.name, effect.detail)

    def _sign_in(self, effect: effects.SignIn) -> None:
        self._hub.sign_in(self._connection, effect.user_id, self._signed_in, watchlist=effect.watchlist)

    def _unsubscribe(self, effect: effects.Unsubscribe) -> None:
        self._hub.unsubscribe(self._connection, effect.channel)
        if self._resume is not None:
            self._resume.left(effect.channel)

    def _ponged(self, _: effects.Ponged) -> None:
        if self._resume is not None:
            self._resume.ponged()

    def _subscribe(self, effect: effects.Subscribe) -> None:
        past = None
        if effect.history is not None:
            lost = functools.partial(self._replay_lost, effect.channel)
            past = connections.Past(effect.history, frozenset(effect.sent_as), lost)
        self._hub.subscribe(
            self._connection,
            effect.channel,
            functools.partial(self._answered, effect.channel, effect.history),
            member=effect.member,
            member_limit=effect.member_limit,
            cached=effect.cached,
            announce=effect.announce,
            past=past,
        )

    # -- the authorization timer ---------------------------------------------------------------------------------------

    def _start_authorization_timer(self, effect: effects.StartAuthorizationTimer) -> None:
        loop = asyncio.get_running_loop()
        self._authorization_timer = loop.call_later(effect.seconds, self._not_authorized_in_time)

    def _not_authorized_in_time(self) -> None:
        self._authorization_timer = None
        self._do(self._protocol.not_authorized_in_time())

    def _stop_authorization_timer(self, _: effects.StopAuthorizationTimer | None = None) -> None:
        if self._authorization_timer is not None:
            self._authorization_timer.cancel()
            self._authorization_timer = None

    # -- what the hub answers ------------------------------------------------------------------------------------------

    def _admitted(self, outcome: interface.SubscribeResult | interface.Refused) -> None:
        if isinstance(outcome, interface.Refused):
            self._do(self._protocol.not_admitted(outcome))
        else:
            self._established()

    def _answered(
        self,
        channel: str,
        past: interface.RecoveryRequest | None,
        outcome: interface.SubscribeResult | interface.Refused,
    ) -> None:
        if isinstance(outcome, interface.Refused):
            self._do(self._protocol.refused(channel, outcome))
            return
        self._do(self._protocol.subscribed(channel, outcome))
        if self._resume is None:
            return
        self._resume.tell(channel)
        if past is not None:
            self._resume.answered(channel, outcome.replayed, past.after)

    def _replay_lost(self, channel: str, reason: str) -> None:
        position = self._hub.position(self._connection, channel)
        self._do(self._protocol.replay_lost(channel, position, reason))
        if self._resume is not None:
            self._resume.lost(channel)

    # -- history -------------------------------------------------------------------------------------------------------

    def _read_history(self, effect: effects.ReadHistory) -> None:
        if self._reading is None or self._reading.done():
            self._reading = asyncio.get_running_loop().create_task(self._send_history(effect))
        else:
            message = "Another page of history is being read: wait for it"
            self._connection.send(recovery.no_history(effect.channel, effect.rid, message))

    async def _send_history(self, effect: effects.ReadHistory) -> None:
        wanted = history_pages.Range(before=effect.before, limit=effect.limit)
        try:
            page = await history_pages.read(self._hub.engine, self._connection.app, effect.channel, wanted)
        except engine_errors.EngineError as error:
            message = f"The history cannot be read: {error}"
            self._connection.send(recovery.no_history(effect.channel, effect.rid, message))
            return
        if page.reason is not None:
            self._connection.send(recovery.no_history(effect.channel, effect.rid, page.reason))
        else:
            self._connection.send(recovery.history(effect.channel, effect.rid, page))

    # -- users ---------------------------------------------------------------------------------------------------------

    def _signed_in(self, outcome: interface.SubscribeResult | interface.Refused) -> None:
        if isinstance(outcome, interface.Refused):
            self._do(self._protocol.not_signed_in(outcome))
        else:
            self._do(self._protocol.signed_in(outcome))

    # -- client events -------------------------------------------------------------------------------------------------

    def _publish(self, effect: effects.PublishClientEvent) -> None:
        """Nobody waits: the client's next frame is read while the engine writes, and the log keeps their order."""
        self._hub.count("pusher.client_events")
        publication = interface.Publication(
            self._connection.app,
            effect.channel,
            effect.body,
            interface.Kind.CLIENT_EVENT,
            effect.user_id,
            exclude=self._connection.socket_id,
            retention=effect.retention,
        )
        self._hub.post(publication, functools.partial(self._not_published, effect))

    def _not_published(self, effect: effects.PublishClientEvent, why: str) -> None:
        self._do(self._protocol.not_published(effect, why))


_DO: dict[type, Callable[[Session, Any], None]] = {
    effects.Send: Session._send,
    effects.Close: Session._close,
    effects.Count: Session._count,
    effects.Subscribe: Session._subscribe,
    effects.Unsubscribe: Session._unsubscribe,
    effects.SignIn: Session._sign_in,
    effects.Ponged: Session._ponged,
    effects.ReadHistory: Session._read_history,
    effects.PublishClientEvent: Session._publish,
    effects.StartAuthorizationTimer: Session._start_authorization_timer,
    effects.StopAuthorizationTimer: Session._stop_authorization_timer,
}
