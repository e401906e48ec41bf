"""The Pusher Channels protocol, version 7, of one connection: a state machine without I/O.

A frame or an answer of the hub goes in, effects come out, and the session does them in their order
(`fanfare.protocol.sessions`). The state of the subscriptions is the hub's: it is read here and changed by effects.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from typing import Any, Final

from fanfare.applications import registry
from fanfare.engine import interface
from fanfare.hub import connections, event_frames
from fanfare.protocol import (
    ack_tracker,
    authorization,
    capabilities,
    client_events,
    effects,
    messages,
    names,
    recovery,
    refusals,
    server_frames,
    sign_in,
)
from fanfare.runtime import close_codes, token_bucket

# Answers per second to frames that are no message of the protocol: a program that sends them usually does so in a loop.
# Answers to messages of the protocol are not limited, because each has a reason of its own.
ERRORS_PER_SECOND: Final = 10

SUBSCRIBES_PER_SECOND: Final = 100  # on average; a page that reconnects subscribes to all its channels at once
MAX_SUBSCRIPTIONS: Final = 1_000  # the default for one connection; each costs about 1 kB of memory

# Events in one answer to pusher:history.
HISTORY_LIMIT: Final = 100
DEFAULT_HISTORY_LIMIT: Final = 50

_PONG: Final[effects.Effects] = (effects.Send(server_frames.PONG),)

_PONGED: Final[effects.Effects] = (effects.Ponged(),)


class _State(enum.Enum):
    OPENING = enum.auto()  # connection_established was not sent; no other frame may be the first
    OPEN = enum.auto()
    CLOSED = enum.auto()


def _no_tracker() -> None:
    """Of a client without a resume token."""


class StateMachine:
    """`subscriptions`: the hub's, by channel. `clock`: monotonic seconds. `wall_clock`: Unix time.

    The application is looked up for each frame that needs it, so changed limits, a rotated secret or client events that
    were switched off hold for the next frame of every connection; a lookup is one access of a dictionary. A deleted
    application stays as it last was: its connections are about to be closed.

    `activity_timeout`: seconds of silence after which the client pings. `window`: seconds that a client may be away,
    for one that asked for positions; None for the others. `tracker`: of a page with a resume token.
    `check_token`: whether a capability token was not revoked; False if the engine must be asked first. It raises
    InvalidToken.
    `max_subscriptions`, `subscribes_per_second` and `max_pending_bytes`: of this connection.
    """

    __slots__ = (
        "_activity_timeout",
        "_application",
        "_applications",
        "_awaiting_revocations",
        "_check_token",
        "_client_event_tokens",
        "_clock",
        "_early",
        "_error_tokens",
        "_identity",
        "_logged",
        "_max_pending_bytes",
        "_max_subscriptions",
        "_state",
        "_subscribe_tokens",
        "_subscribes_per_second",
        "_subscriptions",
        "_timer_runs",
        "_tracker",
        "_wall_clock",
        "_window",
        "socket_id",
    )

    def __init__(
        self,
        applications: registry.Registry,
        application: registry.Application,
        socket_id: str,
        subscriptions: Mapping[str, connections.Subscription],
        *,
        activity_timeout: int,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        window: int | None = None,
        tracker: Callable[[], ack_tracker.AckTracker | None] = _no_tracker,
        check_token: Callable[[str, capabilities.Capability], bool] = lambda _app, _capability: True,
        max_subscriptions: int = MAX_SUBSCRIPTIONS,
        subscribes_per_second: int = SUBSCRIBES_PER_SECOND,
        max_pending_bytes: int = messages.MAX_PENDING_BYTES,
    ) -> None:
        self.socket_id = socket_id
        self._applications = applications
        self._application = application
        self._subscriptions = subscriptions
        self._activity_timeout = activity_timeout
        self._clock = clock
        self._wall_clock = wall_clock
        self._window = window
        self._tracker = tracker
        self._check_token = check_token
        self._max_subscriptions = max_subscriptions
        self._subscribes_per_second = subscribes_per_second
        self._subscribe_tokens: token_bucket.TokenBucket | None = None
        self._max_pending_bytes = max_pending_bytes
        self._state = _State.OPENING
        self._timer_runs = False  # the client has not authorized itself, and the application gave it a time to do so
        self._logged: frozenset[str] = frozenset()  # the reasons of refusals whose log line was written
        # Most connections never need these.
        self._early: messages.PendingFrames | None = None  # frames that came before the connection was open
        self._awaiting_revocations: dict[str, dict[str, Any]] | None = None  # the data of subscribes, by channel
        self._identity: sign_in.Identity | None = None
        self._client_event_tokens: token_bucket.TokenBucket | None = None
        self._error_tokens: token_bucket.TokenBucket | None = None

    @property
    def application(self) -> registry.Application:
        """As it is now."""
        self._application = self._applications.by_id(self._application.id) or self._application
        return self._application

    @property
    def user(self) -> interface.Member | None:
        """The user that the connection is signed in as."""
        return None if self._identity is None else self._identity.user

    def keeps_history(self, channel: str) -> bool:
        return self.application.rules.of(channel) is not None

    # -- opening and closing -------------------------------------------------------------------------------------------

    def ended(self) -> None:
        """The client is gone: forget the functions of the session, which refers to this object."""
        self._tracker = _no_tracker

    def established(self) -> effects.Effects:
        """The connection is admitted: greet the client, and answer the frames that came meanwhile."""
        if self._state is not _State.OPENING:
            return effects.NOTHING
        self._state = _State.OPEN
        done: list[effects.Effect] = [
            effects.Send(
                server_frames.connection_established(self.socket_id, self._activity_timeout, window=self._window)
            )
        ]
        seconds = self.application.authorization_timeout
        if seconds is not None:
            self._timer_runs = True
            done.append(effects.StartAuthorizationTimer(seconds))
        early, self._early = self._early or (), None
        return [*done, *[effects.Receive(text) for text in early]]

    def not_admitted(self, refusal: interface.Refused) -> effects.Effects:
        """The connection limit is reached. Clients reconnect 1 s after 4100, and never after 4004."""
        if refusal.limit is not None and refusal.actual is not None:
            message = f"The application has {refusal.actual} connections; {refusal.limit} are allowed"
        else:
            message = f"The connection cannot be accepted now: {refusal.message}"
        return self._close(close_codes.OVER_CAPACITY, message)

    def not_authorized_in_time(self) -> effects.Effects:
        """The authorization timer ended."""
        if not self._timer_runs:
            return effects.NOTHING
        self._timer_runs = False
        if self.application.authorization_timeout is None:  # it was switched off meanwhile
            return effects.NOTHING
        return self._close(refusals.UNAUTHORIZED, "Connection not authorized within timeout")

    def _authorized(self) -> effects.Effects:
        """The application's server authorized this client. The hub may still refuse the subscription."""
        if not self._timer_runs:
            return effects.NOTHING
        self._timer_runs = False
        return (effects.StopAuthorizationTimer(),)

    def _close(self, code: int, message: str) -> effects.Effects:
        self._state = _State.CLOSED
        self._early = self._identity = None
        return (effects.Close(code, message),)

    def _unavailable(self, message: str, counter: str) -> effects.Effects:
        """Close with 4100, because the engine failed: pusher-js repeats its request only on a new connection, which it
        opens after a second."""
        return [effects.Count(counter, message), *self._close(close_codes.OVER_CAPACITY, message)]

    # -- frames of the client ------------------------------------------------------------------------------------------

    def received(self, text: str) -> effects.Effects:
        """Handle a text frame. Never raises."""
        try:
            if self._state is not _State.OPEN:
                return self._received_early(text) if self._state is _State.OPENING else effects.NOTHING
            message = messages.parse(text)
            if self._identity is not None and self._identity.must_wait(message):
                self._identity.hold(text, message)
                return effects.NOTHING
            return self._answer(message)
        except refusals.BadFrame as error:
            return self._bad_frame(error)
        except refusals.ClientEventRejected as rejection:
            return (
                effects.Send(server_frames.error(rejection.code, rejection.message)),
                effects.Count(f"pusher.client_event_rejected.{rejection.reason}", rejection.message),
            )
        except refusals.TooManyPendingFrames as error:
            return [effects.Count("pusher.pending_frames_full"), *self._close(close_codes.OVER_CAPACITY, error.message)]

    def received_binary(self) -> effects.Effects:
        """Refuse a binary frame."""
        if self._state is not _State.OPEN:
            return (effects.Count("pusher.error.binary"),)
        return self._bad_frame(refusals.BadFrame("Binary frames are not supported: send JSON as text", reason="binary"))

    def _received_early(self, text: str) -> effects.Effects:
        if self._early is None:
            self._early = messages.PendingFrames(self._max_pending_bytes)
        self._early.add(text)
        return effects.NOTHING

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
        return _PONGED

    def _bad_frame(self, error: refusals.BadFrame) -> effects.Effects:
        count = effects.Count(f"pusher.error.{error.reason}", error.message)
        now = self._clock()
        if self._error_tokens is None:
            self._error_tokens = token_bucket.TokenBucket(ERRORS_PER_SECOND, now)
        if not self._error_tokens.take(ERRORS_PER_SECOND, ERRORS_PER_SECOND, now):
            return (count, effects.Count("pusher.error.rate_limited"))
        return (effects.Send(server_frames.error(None, error.message)), count)

    # -- subscribing ---------------------------------------------------------------------------------------------------

    def _subscribe(self, message: messages.Message) -> effects.Effects:
        channel, data = messages.channel(message)
        return self._subscribe_within_rate(channel, data) if self._may_subscribe() else self._too_fast(channel)

    def _subscribe_within_rate(self, channel: str, data: dict[str, Any]) -> effects.Effects:
        application = self.application
        try:
            member, capability = authorization.authorize(
                application, self.socket_id, channel, data, user=self.user, now=self._wall_clock()
            )
            subscription = self._subscriptions.get(channel)
            if subscription is not None:
                _check_member(channel, member, subscription.member)
            elif len(self._subscriptions) + len(self._awaiting_revocations or ()) >= self._max_subscriptions:
                return self._too_many_subscriptions(channel)
            if capability is not None and not self._check_not_revoked(capability):
                if self._awaiting_revocations is None:
                    self._awaiting_revocations = {}
                self._awaiting_revocations[channel] = data
                return (effects.ReadRevocations(channel, capability),)
        except refusals.SubscriptionRefused as refusal:
            return _refuse(channel, refusal, data)
        may_read = capability is None or capabilities.HISTORY in capability.rights
        asked = recovery.asked(
            application.rules.of(channel) if may_read else None,
            data,
            channel,
            with_offsets=self._window is not None,
            tracker=self._tracker(),
        )
        subscribe = effects.Subscribe(
            channel,
            member,
            application.limits.max_presence_members if member is not None else None,
            cached=names.is_cache(channel),
            # The members of a presence channel are known by their names.
            announce=application.subscription_counts and member is None,
            asked=asked if capability is None else asked._replace(capability=capability),
        )
        if names.type_of(channel) is names.Type.PUBLIC:
            return (subscribe,)
        return [*self._authorized(), subscribe]

    def _check_not_revoked(self, capability: capabilities.Capability) -> bool:
        """False if the engine must be asked first. Raises Unauthorized."""
        try:
            return self._check_token(self._application.id, capability)
        except refusals.InvalidToken as error:
            raise refusals.Unauthorized(error.message, reason=error.reason) from None

    def revocations_read(self, channel: str, failure: str = "") -> effects.Effects:
        """The engine answered `ReadRevocations`, or could not, with the reason `failure`."""
        data = (self._awaiting_revocations or {}).pop(channel, None)
        if data is None or self._state is not _State.OPEN:
            return effects.NOTHING
        if not failure:
            return self._subscribe_within_rate(channel, data)
        return self._unavailable(
            f"The channel {channel} cannot be joined now: its token cannot be checked: {failure}",
            "pusher.subscription_refused.unavailable",
        )

    def capability_ended(self, channel: str, reason: str, message: str) -> effects.Effects:
        """The token of a subscription has expired or was revoked."""
        kind = "TokenExpired" if reason == "expired_token" else "TokenRevoked"
        refusal = refusals.SubscriptionRefused(
            message, code=refusals.UNAUTHORIZED, kind=kind, status=401, reason=reason
        )
        return [effects.Unsubscribe(channel), *_refuse(channel, refusal)]

    def _may_subscribe(self) -> bool:
        """Take a token of the rate of subscribes. A first subscribe to a channel, and a last unsubscribe, write to the
        log."""
        now, burst = self._clock(), max(self._max_subscriptions, self._subscribes_per_second)
        if self._subscribe_tokens is None:
            self._subscribe_tokens = token_bucket.TokenBucket(burst, now)
        return self._subscribe_tokens.take(self._subscribes_per_second, burst, now)

    def _too_fast(self, channel: str) -> effects.Effects:
        burst = max(self._max_subscriptions, self._subscribes_per_second)
        message = (
            f"The connection subscribed more than {burst} times at once; {self._subscribes_per_second} subscribes a "
            "second are allowed on average"
        )
        return self._refuse_and_log(channel, message, refusals.CLIENT_EVENT_REJECTED, "too_many_subscribes")

    def _too_many_subscriptions(self, channel: str) -> effects.Effects:
        limit = self._max_subscriptions
        message = f"The connection has {len(self._subscriptions)} subscriptions; {limit} are allowed"
        return self._refuse_and_log(channel, message, close_codes.OVER_CAPACITY, "too_many_subscriptions")

    def _refuse_and_log(self, channel: str, message: str, code: int, reason: str) -> effects.Effects:
        """The log line only once for each reason."""
        refused = _refuse(channel, refusals.LimitReached(message, code=code, reason=reason))
        if reason in self._logged:
            return refused
        self._logged |= {reason}
        return [*refused, effects.Log(message)]

    def _unsubscribe(self, message: messages.Message) -> effects.Effects:
        channel, _ = messages.channel(message)
        if self._identity is not None:
            self._identity.unsubscribed(channel)
        if self._awaiting_revocations:
            self._awaiting_revocations.pop(channel, None)
        return (effects.Unsubscribe(channel),) if channel in self._subscriptions else effects.NOTHING

    # -- answers of the hub --------------------------------------------------------------------------------------------

    def subscribed(self, subscription: connections.Subscription, answer: interface.SubscribeResult) -> effects.Effects:
        """The answer to the first subscribe. What is sent now comes before every event that follows."""
        asked, result = subscription.request, answer.replayed
        stream = recovery.stream(asked, result) if asked.with_stream else None
        reason = recovery.failure(asked, result)
        brings_state = asked.recovery is not None and result is not None and asked.recovery.brings_state(result)
        done = _answer_frames(subscription, answer, stream, with_state=not brings_state)
        if reason is not None:
            if stream is None:
                done.append(effects.Send(recovery.resume_failed(subscription.channel.name, reason)))
            done.append(effects.Count(f"resume.failed.{reason}"))
        return done

    def refreshed(
        self, subscription: connections.Subscription, answer: interface.SubscribeResult, asked: recovery.Asked
    ) -> effects.Effects:
        """The answer to a repeated subscribe, whose token replaces the one before. One that catches up gets the newest
        state with its recovery."""
        subscription.request = subscription.request._replace(capability=asked.capability)
        stream = recovery.repeated_stream(asked, subscription) if asked.with_stream else None
        live = subscription.state is connections.State.LIVE
        return _answer_frames(subscription, answer, stream, with_state=live)

    def refused(self, subscription: connections.Subscription, refusal: interface.Refused) -> effects.Effects:
        """The hub did not subscribe the connection, or could not answer a repeated subscribe."""
        channel = subscription.channel.name
        if subscription.state is connections.State.LEFT:
            if refusal.code == "member_limit":
                return _refuse(channel, _channel_full(channel, refusal))
            return self._unavailable(
                f"The channel {channel} cannot be joined now: {refusal.message}",
                f"pusher.subscription_refused.{refusal.code}",
            )
        message = f"The channel {channel} cannot be read now: {refusal.message}"
        return (effects.Send(server_frames.error(None, message)), effects.Count("pusher.refresh_failed", message))

    def recovery_failed(
        self, subscription: connections.Subscription, reason: str, cached: bytes | None
    ) -> effects.Effects:
        """A recovery failed after it had begun; later events are delivered. `cached`: the state of a cache channel."""
        channel = subscription.channel.name
        if subscription.request.with_stream:
            frame = recovery.stream_reset(channel, subscription.position, reason)
        else:
            frame = recovery.resume_failed(channel, reason)
        done: list[effects.Effect] = [effects.Send(frame), effects.Count(f"resume.failed.{reason}")]
        if cached is not None:
            done.append(effects.Send(cached))
        return done

    # -- history -------------------------------------------------------------------------------------------------------

    def _history(self, message: messages.Message) -> effects.Effects:
        channel, data = messages.channel(message)
        limit, rid = data.get("limit"), data.get("rid")
        rid = rid if isinstance(rid, str | int) else None
        subscription = self._subscriptions.get(channel)
        if subscription is None or subscription.state is connections.State.ATTACHING:
            return _history_refused(channel, rid, "Only a channel's subscribers may read its history", "not_subscribed")
        if not subscription.request.may(capabilities.HISTORY):
            return _history_refused(channel, rid, 'The token does not have the right "history"', "right_not_granted")
        if not self.keeps_history(channel):
            return _history_refused(channel, rid, "This channel keeps no history", recovery.NOT_ENABLED)
        limit = limit if type(limit) is int and 0 < limit <= HISTORY_LIMIT else DEFAULT_HISTORY_LIMIT
        return (effects.ReadHistory(channel, recovery.position(data.get("before")), limit, rid),)

    # -- users ---------------------------------------------------------------------------------------------------------

    def _sign_in(self, message: messages.Message) -> effects.Effects:
        application, data = self.application, messages.data(message)
        try:
            claim = sign_in.authenticate(application, self.socket_id, data, self._wall_clock())
            if self._identity is None:
                self._identity = sign_in.Identity(self._max_pending_bytes)
            claimed = self._identity.claim(claim)
        except refusals.SignInRefused as refusal:
            count = effects.Count(f"pusher.sign_in_refused.{refusal.reason}", refusal.message, evidence=_evidence(data))
            if application.authorization_timeout is not None and self.user is None:
                return [count, *self._close(refusals.UNAUTHORIZED, refusal.message)]
            return (effects.Send(server_frames.error(refusals.UNAUTHORIZED, refusal.message)), count)
        return [*self._authorized(), *claimed]

    def signed_in(self, answer: interface.SubscribeResult | interface.Refused) -> effects.Effects:
        """The hub's answer to `SignIn`."""
        if self._identity is None:
            return effects.NOTHING
        if isinstance(answer, interface.Refused):
            return self._unavailable(
                f"Signing in is not possible now: {answer.message}", f"pusher.sign_in_refused.{answer.code}"
            )
        return self._identity.signed_in(answer)

    # -- client events -------------------------------------------------------------------------------------------------

    def _client_event(self, message: messages.Message) -> effects.Effects:
        application = self.application
        publication: effects.PublishClientEvent | effects.CancelStream | effects.UpdateMember
        if message.event == names.CANCEL_EVENT:
            publication = client_events.cancel(application, self._subscriptions, message)
        elif message.event == names.STATE_EVENT:
            publication = client_events.update_member(application, self._subscriptions, message)
        else:
            publication = client_events.relay(application, self.socket_id, self._subscriptions, message)
        if not self._take_client_event_token(application.limits):
            raise client_events.over_rate()
        return (publication,)

    def _take_client_event_token(self, limits: registry.Limits) -> bool:
        now = self._clock()
        if self._client_event_tokens is None:
            self._client_event_tokens = token_bucket.TokenBucket(limits.client_events_burst, now)
        return self._client_event_tokens.take(limits.client_events_per_second, limits.client_events_burst, now)

    def not_published(self, event: str, channel: str, message: str) -> effects.Effects:
        """The engine did not take a client event, or did not do what it asks for."""
        text = f'Client event "{refusals.quoted(event)}" on channel "{channel}" was lost: {message}'
        return (
            effects.Send(server_frames.error(None, text)),
            effects.Count("pusher.client_event_rejected.unavailable", text),
        )


def _check_member(channel: str, member: interface.Member | None, subscribed: interface.Member | None) -> None:
    """Raise Unauthorized if the connection is in the channel as another member. It must leave first, so that the other
    members are notified."""
    if member is not None and subscribed is not None and member.user_id != subscribed.user_id:
        raise refusals.Unauthorized(
            f"This connection is in {channel} as another user: unsubscribe first", reason="other_member"
        )


def _answer_frames(
    subscription: connections.Subscription,
    answer: interface.SubscribeResult,
    stream: dict[str, Any] | None,
    *,
    with_state: bool,
) -> list[effects.Effect]:
    """The success; on a cache channel the cached event or the miss; the number of subscribers."""
    channel = subscription.channel.name
    if subscription.member is None:
        sent = [server_frames.subscription_succeeded(channel, stream)]
    else:
        sent = [server_frames.presence_subscription_succeeded(channel, answer.members, stream)]
        if stream is not None:
            sent.append(recovery.stream_frame(channel, stream))
    if with_state and names.is_cache(channel):
        sent.append(server_frames.cache_miss(channel) if answer.cached is None else answer.cached)
    if answer.subscribers:  # 0 where the hub was not asked for them: this connection is one
        sent.append(event_frames.subscription_count(channel, answer.subscribers))
    return [effects.Send(frame) for frame in sent]


def _refuse(
    channel: str, refusal: refusals.SubscriptionRefused, data: Mapping[str, Any] | None = None
) -> effects.Effects:
    """Two frames: the first reaches error callbacks in Java and Swift, the second those in JavaScript."""
    return (
        effects.Send(server_frames.error(refusal.code, refusal.message)),
        effects.Send(server_frames.subscription_error(channel, refusal.kind, refusal.message, refusal.status)),
        effects.Count(
            f"pusher.subscription_refused.{refusal.reason}", refusal.message, refusals.quoted(channel), _evidence(data)
        ),
    )


def _evidence(data: Mapping[str, Any] | None) -> dict[str, str] | None:
    """What the client sent as a proof, for the auth doctor."""
    if data is None:
        return None
    found = ((name, data.get(name)) for name in ("auth", "channel_data", "user_data"))
    return {name: value for name, value in found if isinstance(value, str) and value} or None


def _channel_full(channel: str, refusal: interface.Refused) -> refusals.LimitReached:
    return refusals.LimitReached(
        f"The channel {channel} has {refusal.actual} members; {refusal.limit} are allowed",
        code=close_codes.OVER_CAPACITY,
        reason=refusal.code,
    )


def _history_refused(channel: str, rid: str | int | None, message: str, reason: str) -> effects.Effects:
    return (
        effects.Send(recovery.history_refused(channel, rid, message)),
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
