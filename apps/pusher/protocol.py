"""One connection's side of the Pusher Channels protocol, version 7: a state machine.

A frame or an outcome goes in, effects come out, and the shell does them in their order (`apps.pusher.sessions`). There
is no I/O here and no waiting. What it has to know is what it was told.
"""

from __future__ import annotations

import enum
import sys
from collections.abc import Callable
from typing import Final

from apps.applications import registry
from apps.engine import interface
from apps.pusher import authorization, client_events, effects, errors, frames, messages, names, rates, subscriptions

# A program that sends what is not the protocol mostly does so in a loop, and its tenth answer in a second tells its
# developer nothing that the first did not. Answers to messages of the protocol are not bounded: each of them refuses
# something in particular.
ERRORS_PER_SECOND: Final = 10

# Memory for what a client sends before it was told that it is connected. Asking whether there is room for it takes a
# moment, and a hand-written client may not wait for the answer; this is some hundred subscriptions.
EARLY_BYTES: Final = 65_536

_PONG: Final[effects.Effects] = (effects.Send(frames.PONG),)


class _State(enum.Enum):
    OPENING = enum.auto()  # connection_established was not sent: nothing else may be the first frame
    OPEN = enum.auto()
    CLOSED = enum.auto()


class Protocol:
    """`activity_timeout` in seconds; `clock` in seconds, never going back.

    The application is looked up for each frame that needs it, so that changed limits, a rotated secret or client events
    switched off hold for the next frame of every live connection; it costs one dictionary lookup. One that was deleted
    stays as it last was: its connections are about to be closed.
    """

    __slots__ = (
        "_activity_timeout",
        "_application",
        "_applications",
        "_client_event_tokens",
        "_clock",
        "_early",
        "_early_bytes",
        "_error_tokens",
        "_state",
        "_subscriptions",
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
    ) -> None:
        self.socket_id = socket_id
        self._applications = applications
        self._application = application
        self._activity_timeout = activity_timeout
        self._clock = clock
        self._state = _State.OPENING
        self._early: list[str] = []
        self._early_bytes = 0
        self._subscriptions = subscriptions.Subscriptions()
        # Most connections never need these two.
        self._client_event_tokens: rates.TokenBucket | None = None
        self._error_tokens: rates.TokenBucket | None = None

    @property
    def application(self) -> registry.Application:
        """As it is now."""
        self._application = self._applications.by_id(self._application.id) or self._application
        return self._application

    def channels(self) -> dict[str, subscriptions.State]:
        """A copy, for looking inside."""
        return self._subscriptions.states()

    # -- the connection's life -----------------------------------------------------------------------------------------

    def established(self) -> effects.Effects:
        """There is room for it: the client is told, and what it sent meanwhile is answered."""
        if self._state is not _State.OPENING:
            return effects.NOTHING
        self._state = _State.OPEN
        early, self._early = self._early, []
        wanted: list[effects.Effect] = [
            effects.Send(frames.connection_established(self.socket_id, self._activity_timeout))
        ]
        for text in early:
            wanted += self.received(text)
        return wanted

    def not_admitted(self, refusal: interface.Refused) -> effects.Effects:
        """There is no room for it. With this code clients come back after a second; 4004 keeps them away for good."""
        if refusal.limit is not None and refusal.actual is not None:
            message = f"The application has {refusal.actual} connections; {refusal.limit} are allowed"
        else:
            message = f"The connection cannot be accepted now: {refusal.message}"
        return self._close(errors.OVER_CAPACITY, message)

    def _close(self, code: int, message: str) -> effects.Effects:
        self._state = _State.CLOSED
        self._early = []
        return (effects.Close(code, message),)

    # -- from the client -----------------------------------------------------------------------------------------------

    def received(self, text: str) -> effects.Effects:
        """A text frame came. Never raises."""
        if self._state is not _State.OPEN:
            return self._received_early(text) if self._state is _State.OPENING else effects.NOTHING
        try:
            return self._answer(messages.parse(text))
        except errors.BadFrame as error:
            return self._complain(error)
        except errors.ClientEventRejected as rejection:
            return (
                effects.Send(frames.error(rejection.code, rejection.message)),
                effects.Count(f"pusher.client_event_rejected.{rejection.reason}", rejection.message),
            )

    def received_binary(self) -> effects.Effects:
        """A binary frame came."""
        if self._state is not _State.OPEN:
            return (effects.Count("pusher.error.binary"),)
        return self._complain(errors.BadFrame("Binary frames are not supported: send JSON as text", reason="binary"))

    def _received_early(self, text: str) -> effects.Effects:
        self._early.append(text)
        self._early_bytes += sys.getsizeof(text)
        if self._early_bytes > EARLY_BYTES:
            message = f"{self._early_bytes} bytes came before the connection was established; {EARLY_BYTES} are allowed"
            return self._close(errors.OVER_CAPACITY, message)
        return effects.NOTHING

    def _answer(self, message: messages.Message) -> effects.Effects:
        match message.event:
            case "pusher:ping":
                return _PONG
            case "pusher:pong":
                return effects.NOTHING
            case "pusher:subscribe":
                return self._subscribe(message)
            case "pusher:unsubscribe":
                channel, _ = messages.channel(message)
                return self._subscriptions.leave(channel)
        if message.event.startswith(names.CLIENT_EVENT_PREFIX):
            return self._client_event(message)
        raise errors.BadFrame(
            f"Unsupported event received on socket: '{errors.quoted(message.event)}'", reason="unsupported_event"
        )

    def _complain(self, error: errors.BadFrame) -> effects.Effects:
        count = effects.Count(f"pusher.error.{error.reason}", error.message)
        now = self._clock()
        if self._error_tokens is None:
            self._error_tokens = rates.TokenBucket(ERRORS_PER_SECOND, now)
        if not self._error_tokens.take(ERRORS_PER_SECOND, ERRORS_PER_SECOND, now):
            return (count, effects.Count("pusher.error.rate_limited"))
        return (effects.Send(frames.error(None, error.message)), count)

    # -- subscriptions -------------------------------------------------------------------------------------------------

    def _subscribe(self, message: messages.Message) -> effects.Effects:
        channel, data = messages.channel(message)
        application = self.application
        try:
            member = authorization.authorize(application, self.socket_id, channel, data)
            return self._subscriptions.join(channel, member, application.limits.max_presence_members)
        except errors.SubscriptionRefused as refusal:
            return subscriptions.refuse(channel, refusal)

    def subscribed(self, channel: str, attached: interface.Attached) -> effects.Effects:
        """The hub did what `Subscribe` asked."""
        return self._subscriptions.subscribed(channel, attached)

    def refused(self, channel: str, refusal: interface.Refused) -> effects.Effects:
        """The hub did not do what `Subscribe` asked."""
        return self._subscriptions.refused(channel, refusal)

    # -- client events -------------------------------------------------------------------------------------------------

    def _client_event(self, message: messages.Message) -> effects.Effects:
        event, fields = message
        channel = fields.get("channel")
        if not isinstance(channel, str) or "data" not in fields:
            raise errors.BadFrame(
                "Invalid client event: it must contain channel and data", reason="invalid_client_event"
            )
        application = self.application
        client_events.check_allowed(application, channel, event)
        subscription = self._subscriptions.live(channel)
        if subscription is None:
            raise client_events.not_subscribed(channel, event)
        user_id = None if subscription.member is None else subscription.member.user_id
        body = client_events.encode(application.limits, channel, event, fields["data"], user_id)
        if not self._take_client_event_token(application.limits):
            raise client_events.over_rate()
        return (effects.PublishClientEvent(channel, event, body, user_id), effects.Count("pusher.client_events"))

    def _take_client_event_token(self, limits: registry.Limits) -> bool:
        now = self._clock()
        if self._client_event_tokens is None:
            self._client_event_tokens = rates.TokenBucket(limits.client_events_burst, now)
        return self._client_event_tokens.take(limits.client_events_per_second, limits.client_events_burst, now)

    def not_published(self, publication: effects.PublishClientEvent, message: str) -> effects.Effects:
        """The engine did not take a client event: its sender is told, for nobody else knows of it."""
        event = errors.quoted(publication.event)
        text = f'Client event "{event}" on channel "{publication.channel}" was lost: {message}'
        return (effects.Send(frames.error(None, text)), effects.Count("pusher.client_event_rejected.unavailable", text))
