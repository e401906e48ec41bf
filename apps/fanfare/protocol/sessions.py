"""The session of one WebSocket client: the state machine, and the connection at the hub, which it owns."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from fanfare.applications import registry as registries
from fanfare.engine import errors as engine_errors
from fanfare.engine import interface
from fanfare.hub import connections, history_pages, writers
from fanfare.hub import hub as hubs
from fanfare.protocol import (
    ack_tracker,
    capabilities,
    effects,
    handshake,
    messages,
    names,
    page_sessions,
    recovery,
    revocations,
    server_frames,
    session_owners,
    state_machine,
    streams,
)
from fanfare.runtime import close_codes, token_bucket
from fanfare.runtime.address_limit import AddressLimit
from fanfare.runtime.log_throttle import LogThrottle
from fanfare.sockets import frames as sockets

logger = logging.getLogger(__name__)

# Of a whole worker: a thousand clients with an old key reconnect every second.
REFUSALS_LOGGED_PER_SECOND: Final = 10
_refusal_log = LogThrottle(logger, 1.0, burst=REFUSALS_LOGGED_PER_SECOND)

# Of one client. A page that subscribes to all its channels with an old secret is far below it; above it, each frame
# costs the worker 10 to 20 µs of CPU, and the client is read more slowly.
REFUSALS_PER_SECOND: Final = 100
REST_S: Final = 0.25  # between two reads of such a client
_slowed_log = LogThrottle(logger)

# In the frame, the quotes in the events are escaped once more. A frame above FANFARE_BUFFER_BYTES would disconnect its
# client as a slow one.
HISTORY_BYTES: Final = 262_144  # of the events of a page
HISTORY_PAGES_PER_SECOND: Final = 20  # a page of 180 kB costs the worker 0.4 ms of CPU
HISTORY_BURST_S: Final = 5  # the pages of so many seconds may be read at once, by a browser page with many channels
_history_log = LogThrottle(logger)

# The nouns of the counters of refusals, for the console.
_REFUSED: Final = {
    "subscription_refused": "subscription",
    "sign_in_refused": "sign-in",
    "client_event_rejected": "client event",
    "history_refused": "history",
    "error": "frame",
}

# The ping of the vendor's clients, and its answer: an idle connection sends nothing else. It is answered without the
# session once the connection is open; before, no frame may come before the greeting.
READY_ANSWERS: Final = {b'{"event":"pusher:ping","data":{}}': sockets.text(server_frames.PONG)}


def note_refusal(
    hub: hubs.Hub, code: int, message: str, address: str, connection: hubs.Connection | None = None
) -> None:
    """Count and log a connection that was refused or closed. `code`: the close code. `message` is printable."""
    hub.count(f"pusher.refused.{code}")
    hub.activity.refused("connection", str(code), message, address=address, connection=connection)
    _refusal_log.info("Connection from %s refused with %d: %s", address or "an unknown address", code, message)


@dataclass(frozen=True, slots=True)
class Options:
    """`activity_timeout`: seconds of silence after which a client pings; 120 as Pusher's, less behind a proxy that cuts
    idle connections. `max_subscriptions`, `subscribes_per_second`, `history_pages_per_second` and `max_pending_bytes`
    (of frames that wait for an answer): per connection. `addresses`: the open WebSockets of this worker by client
    address.
    """

    activity_timeout: int = 120
    max_subscriptions: int = state_machine.MAX_SUBSCRIPTIONS
    subscribes_per_second: int = state_machine.SUBSCRIBES_PER_SECOND
    history_pages_per_second: int = HISTORY_PAGES_PER_SECOND
    max_pending_bytes: int = messages.MAX_PENDING_BYTES
    addresses: AddressLimit = field(default_factory=lambda: AddressLimit(0, "WebSockets"))
    resume: page_sessions.Options = field(default_factory=page_sessions.Options)


class Session:
    """One client, from its accepted handshake to its end. `owners`: of the resume tokens; without it no page is
    resumed."""

    __slots__ = (
        "_authorization_timer",
        "_capabilities",
        "_capability_timer",
        "_connection",
        "_history",
        "_history_tokens",
        "_hub",
        "_machine",
        "_options",
        "_page",
        "_refusal_tokens",
        "_rest_s",
        "answers",
    )

    def __init__(
        self,
        hub: hubs.Hub,
        registry: registries.Registry,
        writer: writers.Writer,
        accepted: handshake.Handshake,
        *,
        options: Options,
        owners: session_owners.SessionOwners | None = None,
    ) -> None:
        self.answers: Mapping[bytes, bytes] = {}  # see fanfare.sockets.protocol.Listener
        self._hub = hub
        self._options = options
        self._history: asyncio.Task[None] | None = None  # the read of a page of history: one at a time
        self._authorization_timer: asyncio.TimerHandle | None = None
        # The tokens of its subscriptions; None for the many connections that have none.
        self._capabilities: set[capabilities.Capability] | None = None
        self._capability_timer: asyncio.TimerHandle | None = None
        self._history_tokens: token_bucket.TokenBucket | None = None
        self._refusal_tokens: token_bucket.TokenBucket | None = None  # most clients are never refused
        self._rest_s = 0.0  # before the client's next frame is read
        self._connection = hubs.Connection(
            accepted.application.id,
            handshake.new_socket_id(),
            writer,
            self,
            context=accepted.client,
            close_frame=server_frames.error,
            with_offsets=accepted.with_offsets,
        )
        self._machine = state_machine.StateMachine(
            registry,
            accepted.application,
            self._connection.socket_id,
            self._connection.subscriptions,
            activity_timeout=options.activity_timeout,
            clock=time.monotonic,
            wall_clock=time.time,
            window=options.resume.window if accepted.with_offsets else None,
            tracker=self._tracker,
            check_token=revocations.of(hub).is_valid,
            max_subscriptions=options.max_subscriptions,
            subscribes_per_second=options.subscribes_per_second,
            max_pending_bytes=options.max_pending_bytes,
        )
        self._page: page_sessions.PageSession | None = None
        if accepted.token is not None and owners is not None:
            self._page = page_sessions.PageSession(
                hub,
                owners,
                self._connection,
                accepted.token,
                origin=accepted.origin,
                options=options.resume,
                keeps_history=self._machine.keeps_history,
                max_channels=options.max_subscriptions,
            )

    # -- the beginning and the end -------------------------------------------------------------------------------------

    def open(self) -> None:
        """Connect at the hub, and greet the client as soon as it is admitted."""
        self._options.addresses.opened(self._connection.context.address)
        self._hub.connect(self._connection)
        if self._page is None:
            self._admit()
        else:
            self._page.begin(self._admit)

    def _admit(self) -> None:
        limit = self._machine.application.limits.max_connections
        if limit is None:
            self._established()
        else:
            self._hub.admit(self._connection, limit)

    def _established(self) -> None:
        self._do(self._machine.established())
        self.answers = READY_ANSWERS

    def close(self, code: int, message: str) -> None:
        """Send the reason as `pusher:error`, and close the WebSocket."""
        if not self._connection.closing:
            note_refusal(self._hub, code, message, self._connection.context.address, self._connection)
            self._connection.close(code, message)

    def restart(self) -> None:
        self._connection.close(close_codes.RECONNECT, "The server is restarting")

    def end(self) -> None:
        """The server below reports that the client is gone."""
        # After a close of our own it reports that at once, whether or not the client reads. The hub has forgotten such
        # a connection already, and must go on watching its transport, which a stalled client would keep open.
        if not self._connection.closing:
            self._hub.disconnect(self._connection)
        self._options.addresses.closed(self._connection.context.address)
        self._stop_authorization_timer()
        self._release_capabilities()
        if self._page is not None:
            self._page.end()
        if self._history is not None:
            self._history.cancel()
        self._connection.owner = connections.ENDED
        self._machine.ended()

    def _tracker(self) -> ack_tracker.AckTracker | None:
        return None if self._page is None else self._page.tracker

    # -- frames of the client ------------------------------------------------------------------------------------------

    def received(self, text: str) -> float:
        if not self._connection.closing:
            self._do(self._machine.received(text))
        return self._rest_s and self._rest()

    def received_binary(self) -> float:
        if not self._connection.closing:
            self._do(self._machine.received_binary())
        return self._rest_s and self._rest()

    def _rest(self) -> float:
        rest_s, self._rest_s = self._rest_s, 0.0
        return rest_s

    # -- calls of the hub (fanfare.hub.connections.Owner) --------------------------------------------------------------

    def admitted(self, answer: interface.SubscribeResult | interface.Refused) -> None:
        if isinstance(answer, interface.Refused):
            self._do(self._machine.not_admitted(answer))
        else:
            self._established()

    def signed_in(self, answer: interface.SubscribeResult | interface.Refused) -> None:
        done = self._machine.signed_in(answer)
        user = self._machine.user
        if self._page is not None and user is not None:
            self._page.signed_in(user.user_id)
        self._do(done)

    def subscribed(self, subscription: connections.Subscription, answer: interface.SubscribeResult) -> None:
        self._do(self._machine.subscribed(subscription, answer))
        if logger.isEnabledFor(logging.DEBUG):
            ids = {"socket": self._connection.socket_id, "channel": subscription.channel.name}
            logger.debug("%s: subscribed to %s", ids["socket"], ids["channel"], extra=ids)
        if self._page is not None:
            self._page.subscribed(subscription, answer.replayed)

    def refreshed(
        self, subscription: connections.Subscription, answer: interface.SubscribeResult, request: recovery.Asked
    ) -> None:
        self._do(self._machine.refreshed(subscription, answer, request))
        if request.capability is not None and request.capability not in (self._capabilities or ()):
            self._do(self._machine.capability_ended(subscription.channel.name, "revoked_token", revocations.MESSAGE))

    def refused(self, subscription: connections.Subscription, refusal: interface.Refused) -> None:
        self._do(self._machine.refused(subscription, refusal))

    def recovery_failed(self, subscription: connections.Subscription, reason: str, cached: bytes | None) -> None:
        self._do(self._machine.recovery_failed(subscription, reason, cached))
        if self._page is not None:
            self._page.recovery_failed(subscription, reason)

    def event_sent(self, subscription: connections.Subscription) -> None:
        if self._page is not None:
            self._page.event_sent(subscription)

    # -- capability tokens ---------------------------------------------------------------------------------------------

    def _hold(self, capability: capabilities.Capability) -> None:
        """The subscription that is about to begin ends with its token."""
        if self._capabilities is None:
            self._capabilities = set()
        if capability not in self._capabilities:
            self._capabilities.add(capability)
            revocations.of(self._hub).hold(self._connection.app, capability, self)
            self._set_capability_timer()

    def _set_capability_timer(self) -> None:
        if self._capability_timer is not None:
            self._capability_timer.cancel()
            self._capability_timer = None
        if self._capabilities:
            seconds = min(one.expires for one in self._capabilities) - time.time()
            loop = asyncio.get_running_loop()
            self._capability_timer = loop.call_later(min(seconds, capabilities.MAX_LIFE_S), self._end_expired)

    def _end_expired(self) -> None:
        now = time.time()
        for capability in [one for one in self._capabilities or () if one.expires <= now]:
            self.revoked(capability, "expired_token", "The token has expired")
        self._set_capability_timer()

    def revoked(self, capability: capabilities.Capability, reason: str, message: str) -> None:
        """See fanfare.protocol.revocations.Holder."""
        for name, subscription in list(self._connection.subscriptions.items()):
            if subscription.request.capability == capability:
                self._do(self._machine.capability_ended(name, reason, message))
        if self._capabilities is not None:
            self._capabilities.discard(capability)
            revocations.of(self._hub).release(self._connection.app, capability, self)

    def _release_capabilities(self) -> None:
        if self._capability_timer is not None:
            self._capability_timer.cancel()
        for capability in self._capabilities or ():
            revocations.of(self._hub).release(self._connection.app, capability, self)
        self._capabilities = None

    def _read_revocations(self, effect: effects.ReadRevocations) -> None:
        self._hub.supervisor.spawn("check of a token", self._do_read_revocations(effect))

    async def _do_read_revocations(self, effect: effects.ReadRevocations) -> None:
        failure = ""
        try:
            await revocations.of(self._hub).read(self._connection.app, effect.capability)
        except engine_errors.EngineError as error:
            failure = str(error)
        if not self._connection.closing:
            self._do(self._machine.revocations_read(effect.channel, failure))

    # -- effects -------------------------------------------------------------------------------------------------------

    def _do(self, wanted: Sequence[effects.Effect]) -> None:
        for effect in wanted:
            _DO[type(effect)](self, effect)

    def _send(self, effect: effects.Send) -> None:
        self._connection.send(effect.body)

    def _receive(self, effect: effects.Receive) -> None:
        """A frame that has waited. Its rest comes before the client's next frame."""
        if not self._connection.closing:
            self._do(self._machine.received(effect.text))

    def _close(self, effect: effects.Close) -> None:
        self.close(effect.code, effect.message)

    def _count(self, effect: effects.Count) -> None:
        self._hub.count(effect.name)
        if effect.detail:
            socket_id = self._connection.socket_id
            ids = {"socket": socket_id, "channel": effect.channel or None, "reason": effect.name}
            logger.debug("%s: %s: %s", socket_id, effect.name, effect.detail, extra=ids)
            kind, _, reason = effect.name.removeprefix("pusher.").partition(".")
            self._hub.activity.refused(
                _REFUSED.get(kind, kind.replace("_", " ")),
                reason or kind,
                effect.detail,
                channel=effect.channel,
                connection=self._connection,
                evidence=effect.evidence,
            )
            self._pay_for_refusal()

    def _pay_for_refusal(self) -> None:
        """Read a client with too many refusals more slowly, so that a flood of them costs the worker little CPU."""
        now = time.monotonic()
        if self._refusal_tokens is None:
            self._refusal_tokens = token_bucket.TokenBucket(REFUSALS_PER_SECOND, now)
        if not self._refusal_tokens.take(REFUSALS_PER_SECOND, REFUSALS_PER_SECOND, now):
            self._rest_s = REST_S
            self._hub.count("pusher.slowed")
            _slowed_log.info(
                "Socket %s from %s is read more slowly: more than %d of its frames a second are refused",
                self._connection.socket_id,
                self._connection.context.address or "an unknown address",
                REFUSALS_PER_SECOND,
            )

    def _log(self, effect: effects.Log) -> None:
        address = self._connection.context.address or "an unknown address"
        _refusal_log.info("Socket %s from %s: %s", self._connection.socket_id, address, effect.message)

    def _subscribe(self, effect: effects.Subscribe) -> None:
        if effect.asked.capability is not None:
            self._hold(effect.asked.capability)
        self._hub.subscribe(
            self._connection,
            effect.channel,
            member=effect.member,
            member_limit=effect.member_limit,
            cached=effect.cached,
            announce=effect.announce,
            recovery=effect.asked.recovery,
            request=effect.asked,
        )

    def _unsubscribe(self, effect: effects.Unsubscribe) -> None:
        self._hub.unsubscribe(self._connection, effect.channel)
        if self._page is not None:
            self._page.left(effect.channel)

    def _ponged(self, _: effects.Ponged) -> None:
        if self._page is not None:
            self._page.ponged()

    def _sign_in(self, effect: effects.SignIn) -> None:
        self._hub.sign_in(self._connection, effect.user_id, watchlist=effect.watchlist)

    def _start_authorization_timer(self, effect: effects.StartAuthorizationTimer) -> None:
        loop = asyncio.get_running_loop()
        self._authorization_timer = loop.call_later(effect.seconds, self._not_authorized_in_time)

    def _not_authorized_in_time(self) -> None:
        self._authorization_timer = None
        self._do(self._machine.not_authorized_in_time())

    def _stop_authorization_timer(self, _: effects.StopAuthorizationTimer | None = None) -> None:
        if self._authorization_timer is not None:
            self._authorization_timer.cancel()
            self._authorization_timer = None

    def _publish(self, effect: effects.PublishClientEvent) -> None:
        """The client's next frame is read while the engine writes; the log keeps the order of both."""
        self._hub.count("pusher.client_events")
        self._hub.post(effect.publication, functools.partial(self._not_published, effect))

    def _not_published(self, effect: effects.PublishClientEvent, why: str) -> None:
        self._do(self._machine.not_published(effect.event, effect.publication.channel, why))

    def _cancel_stream(self, effect: effects.CancelStream) -> None:
        where = interface.StreamName(self._connection.app, effect.channel, effect.stream_id)
        end = streams.end(self._hub, self._machine.application, where, interface.StreamState.CANCELLED)
        answered = self._answered(names.CANCEL_EVENT, effect.channel, end)
        self._hub.supervisor.spawn("cancellation of a stream", answered)

    def _update_member(self, effect: effects.UpdateMember) -> None:
        self._hub.count("pusher.member_updates")
        update = asyncio.to_thread(
            self._hub.engine.update_member, self._connection.app, effect.channel, effect.user_id, effect.info
        )
        self._hub.supervisor.spawn("update of a member", self._answered(names.STATE_EVENT, effect.channel, update))

    async def _answered(self, event: str, channel: str, work: Awaitable[object]) -> None:
        """Await what a client event asks for. The client gets an error frame if it fails."""
        try:
            await work
        except engine_errors.EngineError as error:
            self._do(self._machine.not_published(event, channel, str(error)))
        except Exception:
            self._do(self._machine.not_published(event, channel, "internal error"))
            raise  # the supervisor logs and counts it

    def _read_history(self, effect: effects.ReadHistory) -> None:
        if self._history is None or self._history.done():
            self._history = self._hub.supervisor.spawn("read of history", self._send_history(effect))
        else:
            message = "Another page of history is being read: wait for it"
            self._connection.send(recovery.history_refused(effect.channel, effect.rid, message))
            self._count(effects.Count("pusher.history_refused.busy", message, channel=effect.channel))

    async def _send_history(self, effect: effects.ReadHistory) -> None:
        await self._wait_for_history()
        wanted = history_pages.Range(before=effect.before, limit=effect.limit, max_bytes=HISTORY_BYTES)
        try:
            page = await history_pages.read(self._hub.engine, self._connection.app, effect.channel, wanted)
        except engine_errors.EngineError as error:
            message = f"The history cannot be read: {error}"
            self._connection.send(recovery.history_refused(effect.channel, effect.rid, message))
            return
        except Exception:
            message = "The history cannot be read: internal error"
            self._connection.send(recovery.history_refused(effect.channel, effect.rid, message))
            raise  # the supervisor logs and counts it
        if page.reason is not None:
            self._connection.send(recovery.history_refused(effect.channel, effect.rid, page.reason))
        else:
            self._connection.send(recovery.history_page(effect.channel, effect.rid, page))

    async def _wait_for_history(self) -> None:
        rate = self._options.history_pages_per_second
        burst = rate * HISTORY_BURST_S
        if self._history_tokens is None:
            self._history_tokens = token_bucket.TokenBucket(burst, time.monotonic())
        delay_s = self._history_tokens.reserve(rate, burst, time.monotonic())
        if not delay_s:
            return
        self._hub.count("pusher.history_delayed")
        _history_log.info(
            "Socket %s from %s waits before it reads history: it has read more than %d pages at once, and %d a second "
            "are allowed",
            self._connection.socket_id,
            self._connection.context.address or "an unknown address",
            burst,
            rate,
        )
        await asyncio.sleep(delay_s)


_DO: Final[dict[type, Callable[[Session, Any], None]]] = {
    effects.Send: Session._send,
    effects.Receive: Session._receive,
    effects.Close: Session._close,
    effects.Count: Session._count,
    effects.Log: Session._log,
    effects.Subscribe: Session._subscribe,
    effects.Unsubscribe: Session._unsubscribe,
    effects.ReadRevocations: Session._read_revocations,
    effects.SignIn: Session._sign_in,
    effects.Ponged: Session._ponged,
    effects.ReadHistory: Session._read_history,
    effects.PublishClientEvent: Session._publish,
    effects.CancelStream: Session._cancel_stream,
    effects.UpdateMember: Session._update_member,
    effects.StartAuthorizationTimer: Session._start_authorization_timer,
    effects.StopAuthorizationTimer: Session._stop_authorization_timer,
}
