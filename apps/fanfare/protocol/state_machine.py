"""One connection's side of the Pusher Channels protocol, version 7: a state machine.

A frame or an outcome goes in, effects come out, and the shell does them in their order
(`fanfare.protocol.sessions`). There is no I/O here and no waiting. What it has to know is what it was told.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from typing import Final

from fanfare.applications import registry
from fanfare.engine import interface
from fanfare.protocol import (
    ack_tracker,
    authorization,
    client_events,
    effects,
    identities,
    messages,
    names,
    pending_frames,
    recovery,
    refusals,
    server_frames,
    subscriptions,
    users,
)
from fanfare.runtime import token_bucket

# A program that sends what is not the protocol mostly does so in a loop, and its tenth answer in a second tells its
# developer nothing that the first did not. Answers to messages of the protocol are not bounded: each of them refuses
# something in particular.
ERRORS_PER_SECOND: Final = 10

# Of entries in one answer to pusher:history; a page shows fewer at a time.
HISTORY_LIMIT: Final = 100
DEFAULT_HISTORY_LIMIT: Final = 50

_PONG: Final[effects.Effects] = (effects.Send(server_frames.PONG),)

_PONGED: Final[effects.Effects] = (effects.Ponged(),)


class _State(enum.Enum):
    OPENING = enum.auto()  # connection_established was not sent: nothing else may be the first frame
    OPEN = enum.auto()
    CLOSED = enum.auto()


class StateMachine:
    """`activity_timeout` in seconds; `clock` in seconds, never going back; `wall_clock` gives Unix time.

    The application is looked up for each frame that needs it, so that changed limits, a rotated secret or client events
    switched off hold for the next frame of every live connection; it costs one dictionary lookup. One that was deleted
    stays as it last was: its connections are about to be closed.

    `window`: seconds that a client may be away, for one that asked for the positions of events; None for the others.
    """

    __slots__ = (
        "_activity_timeout",
        "_application",
        "_applications",
        "_client_event_tokens",
        "_clock",
        "_early",
        "_error_tokens",
        "_identity",
        "_state",
        "_subscriptions",
        "_timer_runs",
        "_wall_clock",
        "_window",
        "resumption",
        "socket_id",
    )

    def __init__(
        self,
        applications: registry.Registry,
        application: registry.Application,
        socket_id: str,
        *,
        activity_timeout: int,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        window: int | None = None,
    ) -> None:
        self._window = window
        self.resumption: ack_tracker.AckTracker | None = None  # of a page that came with a token
        self.socket_id = socket_id
        self._applications = applications
        self._application = application
        self._activity_timeout = activity_timeout
        self._clock = clock
        self._wall_clock = wall_clock
        self._state = _State.OPENING
        self._subscriptions = subscriptions.Subscriptions()
        self._timer_runs = False  # the application gave it a time to say who it is, and it has not
        # Most connections never need these.
        self._early: pending_frames.PendingFrames | None = None  # what came before the connection was open
        self._identity: identities.Identity | None = None
        self._client_event_tokens: token_bucket.TokenBucket | None = None
        self._error_tokens: token_bucket.TokenBucket | None = None

    @property
    def application(self) -> registry.Application:
        """As it is now."""
        self._application = self._applications.by_id(self._application.id) or self._application
        return self._application

    @property
    def user(self) -> interface.Member | None:
        """As whom the connection is signed in."""
        return None if self._identity is None else self._identity.user

    def keeps_history(self, channel: str) -> bool:
        return self.application.rules.of(channel) is not None

    def channels(self) -> dict[str, subscriptions.State]:
        """A copy, for looking inside."""
        return self._subscriptions.states()

    # -- the connection's life -----------------------------------------------------------------------------------------

    def established(self) -> effects.Effects:
        """There is room for it: the client is told, and what it sent meanwhile is answered."""
        if self._state is not _State.OPENING:
            return effects.NOTHING
        self._state = _State.OPEN
        wanted: list[effects.Effect] = [
            effects.Send(
                server_frames.connection_established(self.socket_id, self._activity_timeout, window=self._window)
            )
        ]
        seconds = self.application.authorization_timeout
        if seconds is not None:
            self._timer_runs = True
            wanted.append(effects.StartAuthorizationTimer(seconds))
        early, self._early = self._early or (), None
        return [*wanted, *self._answer_held(early)]

    def not_admitted(self, refusal: interface.Refused) -> effects.Effects:
        """There is no room for it. With this code clients come back after a second; 4004 keeps them away for good."""
        if refusal.limit is not None and refusal.actual is not None:
            message = f"The application has {refusal.actual} connections; {refusal.limit} are allowed"
        else:
            message = f"The connection cannot be accepted now: {refusal.message}"
        return self._close(refusals.OVER_CAPACITY, message)

    def not_authorized_in_time(self) -> effects.Effects:
        """The authorization timer ended."""
        if not self._timer_runs:
            return effects.NOTHING
        self._timer_runs = False
        if self.application.authorization_timeout is None:  # it does not want to know any more
            return effects.NOTHING
        return self._close(refusals.UNAUTHORIZED, "Connection not authorized within timeout")

    def _authorized(self) -> effects.Effects:
        """The application's server vouched for this client; whether the hub has room for it does not matter here."""
        if not self._timer_runs:
            return effects.NOTHING
        self._timer_runs = False
        return (effects.StopAuthorizationTimer(),)

    def _close(self, code: int, message: str) -> effects.Effects:
        self._state = _State.CLOSED
        self._early = self._identity = None
        return (effects.Close(code, message),)

    # -- from the client -----------------------------------------------------------------------------------------------

    def received(self, text: str) -> effects.Effects:
        """A text frame came. Never raises."""
        try:
            if self._state is not _State.OPEN:
                return self._received_early(text) if self._state is _State.OPENING else effects.NOTHING
            return self._read(text)
        except refusals.BadFrame as error:
            return self._complain(error)
        except refusals.ClientEventRejected as rejection:
            return (
                effects.Send(server_frames.error(rejection.code, rejection.message)),
                effects.Count(f"pusher.client_event_rejected.{rejection.reason}", rejection.message),
            )
        except refusals.TooManyPendingFrames as error:
            return self._close(refusals.OVER_CAPACITY, error.message)

    def _read(self, text: str) -> effects.Effects:
        message = messages.parse(text)
        if self._identity is not None and self._identity.awaited_by(message):
            self._identity.hold(text, message)
            return effects.NOTHING
        return self._answer(message)

    def received_binary(self) -> effects.Effects:
        """A binary frame came."""
        if self._state is not _State.OPEN:
            return (effects.Count("pusher.error.binary"),)
        return self._complain(refusals.BadFrame("Binary frames are not supported: send JSON as text", reason="binary"))

    def _received_early(self, text: str) -> effects.Effects:
        if self._early is None:
            self._early = pending_frames.PendingFrames()
        self._early.add(text)
        return effects.NOTHING

    def _answer_held(self, texts: Iterable[str]) -> effects.Effects:
        return [effect for text in texts for effect in self.received(text)]

    def _answer(self, message: messages.Message) -> effects.Effects:
        answer = _ANSWERS.get(message.event)
        if answer is not None:
            return answer(self, message)
        if message.event.startswith(names.CLIENT_EVENT_PREFIX):
            return self._client_event(message)
        raise refusals.BadFrame(
            f"Unsupported event received on socket: '{refusals.quoted(message.event)}'", reason="unsupported_event"
        )

    def _ping(self, _: messages.Message) -> effects.Effects:
        return _PONG

    def _pong(self, _: messages.Message) -> effects.Effects:
        return effects.NOTHING if self.resumption is None else _PONGED

    def _complain(self, error: refusals.BadFrame) -> effects.Effects:
        count = effects.Count(f"pusher.error.{error.reason}", error.message)
        now = self._clock()
        if self._error_tokens is None:
            self._error_tokens = token_bucket.TokenBucket(ERRORS_PER_SECOND, now)
        if not self._error_tokens.take(ERRORS_PER_SECOND, ERRORS_PER_SECOND, now):
            return (count, effects.Count("pusher.error.rate_limited"))
        return (effects.Send(server_frames.error(None, error.message)), count)

    # -- subscriptions -------------------------------------------------------------------------------------------------

    def _subscribe(self, message: messages.Message) -> effects.Effects:
        channel, data = messages.channel(message)
        application = self.application
        try:
            member = authorization.authorize(
                application, self.socket_id, channel, data, user=self.user, now=self._wall_clock()
            )
            joined = self._subscriptions.join(
                channel,
                member,
                member_limit=application.limits.max_presence_members,
                announce=application.subscription_counts,
                past=recovery.wanted(
                    application.rules.of(channel),
                    data,
                    channel,
                    told=self._window is not None,
                    resumed=self.resumption,
                ),
            )
        except refusals.SubscriptionRefused as refusal:
            return subscriptions.refuse(channel, refusal)
        if names.type_of(channel) is names.Type.PUBLIC:
            return joined
        return [*self._authorized(), *joined]

    def _unsubscribe(self, message: messages.Message) -> effects.Effects:
        channel, _ = messages.channel(message)
        if self._identity is not None:
            self._identity.unsubscribed(channel)
        return self._subscriptions.leave(channel)

    def replay_lost(self, channel: str, position: interface.Position | None, reason: str) -> effects.Effects:
        """A replay that the hub had begun cannot be finished; the present follows all the same."""
        return self._subscriptions.replay_lost(channel, position, reason)

    def _history(self, message: messages.Message) -> effects.Effects:
        channel, data = messages.channel(message)
        limit, rid = data.get("limit"), data.get("rid")
        rid = rid if isinstance(rid, str | int) else None
        if self._subscriptions.live(channel) is None:
            return _no_history(channel, rid, "The history of a channel is for its subscribers", "not_subscribed")
        if not self.keeps_history(channel):
            return _no_history(channel, rid, "This channel keeps no history", "not_enabled")
        limit = limit if type(limit) is int and 0 < limit <= HISTORY_LIMIT else DEFAULT_HISTORY_LIMIT
        return (effects.ReadHistory(channel, recovery.position_of(data.get("before")), limit, rid),)

    def subscribed(self, channel: str, attached: interface.SubscribeResult) -> effects.Effects:
        """The hub did what `Subscribe` asked."""
        return self._subscriptions.subscribed(channel, attached)

    def refused(self, channel: str, refusal: interface.Refused) -> effects.Effects:
        """The hub did not do what `Subscribe` asked."""
        return self._subscriptions.refused(channel, refusal)

    # -- users ---------------------------------------------------------------------------------------------------------

    def _sign_in(self, message: messages.Message) -> effects.Effects:
        application = self.application
        try:
            sign_in = users.authenticate(application, self.socket_id, messages.data(message), self._wall_clock())
            if self._identity is None:
                self._identity = identities.Identity()
            claimed = self._identity.claim(sign_in)
        except refusals.SignInRefused as refusal:
            count = effects.Count(f"pusher.sign_in_refused.{refusal.reason}", refusal.message)
            if application.authorization_timeout is not None and self.user is None:
                return [count, *self._close(refusals.UNAUTHORIZED, refusal.message)]
            return (effects.Send(server_frames.error(refusals.UNAUTHORIZED, refusal.message)), count)
        return [*self._authorized(), *claimed]

    def signed_in(self, attached: interface.SubscribeResult) -> effects.Effects:
        """The hub did what `SignIn` asked."""
        if self._identity is None:
            return effects.NOTHING
        return [*self._identity.signed_in(attached), *self._answer_held(self._identity.release())]

    def not_signed_in(self, refusal: interface.Refused) -> effects.Effects:
        """The hub did not do what `SignIn` asked."""
        if self._identity is None:
            return effects.NOTHING
        return [*self._identity.refused(refusal), *self._answer_held(self._identity.release())]

    # -- client events -------------------------------------------------------------------------------------------------

    def _client_event(self, message: messages.Message) -> effects.Effects:
        application = self.application
        publication = client_events.relay(application, self._subscriptions, message)
        if not self._take_client_event_token(application.limits):
            raise client_events.over_rate()
        return (publication,)

    def _take_client_event_token(self, limits: registry.Limits) -> bool:
        now = self._clock()
        if self._client_event_tokens is None:
            self._client_event_tokens = token_bucket.TokenBucket(limits.client_events_burst, now)
        return self._client_event_tokens.take(limits.client_events_per_second, limits.client_events_burst, now)

    def not_published(self, publication: effects.PublishClientEvent, message: str) -> effects.Effects:
        """The engine did not take a client event: its sender is told, for nobody else knows of it."""
        event = refusals.quoted(publication.event)
        text = f'Client event "{event}" on channel "{publication.channel}" was lost: {message}'
        return (
            effects.Send(server_frames.error(None, text)),
            effects.Count("pusher.client_event_rejected.unavailable", text),
        )


def _no_history(channel: str, rid: str | int | None, message: str, reason: str) -> effects.Effects:
    return (
        effects.Send(recovery.no_history(channel, rid, message)),
        effects.Count(f"pusher.history_refused.{reason}", message),
    )


_ANSWERS: Final[dict[str, Callable[[StateMachine, messages.Message], effects.Effects]]] = {
    "pusher:ping": StateMachine._ping,
    "pusher:pong": StateMachine._pong,
    "pusher:subscribe": StateMachine._subscribe,
    "pusher:unsubscribe": StateMachine._unsubscribe,
    "pusher:signin": StateMachine._sign_in,
    "pusher:history": StateMachine._history,
}
