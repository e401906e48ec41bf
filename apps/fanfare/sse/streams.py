"""One SSE connection at the hub, from its admission to its end."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import Any, Final

from fanfare.applications import registry as registries
from fanfare.applications.rules import Rules
from fanfare.engine import errors as engine_errors
from fanfare.engine import interface
from fanfare.hub import connections, event_frames
from fanfare.hub import hub as hubs
from fanfare.protocol import handshake, names, server_frames
from fanfare.runtime import close_codes
from fanfare.sse import cursors, encoding, recovery, refusals, requests, writer

# Connections that began at the same time end at different times.
LIFE_SPREAD: Final = 0.2
CLOSE_S: Final = 1.0  # for a client to read the remaining data when the server stops


_Answer = asyncio.Future[interface.SubscribeResult | interface.Refused]

_NO_RULES: Final = Rules()  # no channel keeps a history
_ADMISSION = ""  # the key of the admission among the answers of the channels


class Over(Exception):
    """The client disconnected before the response began."""


@dataclass(frozen=True, slots=True)
class Times:
    """In seconds. `heartbeat`: the silence after which a comment is sent, so that proxies keep the connection open.
    `life`: the approximate lifetime of a connection; the client then reconnects, maybe to another worker, which spreads
    the load.
    """

    heartbeat: float = 15.0
    life: float = 600.0


DEFAULT_TIMES: Final = Times()


class Stream:
    """`life_limit`: seconds until its token expires. `may_read_history`: whether the client gets kept events."""

    def __init__(
        self,
        hub: hubs.Hub,
        application: registries.Application,
        asked: requests.Asked,
        to_client: writer.StreamWriter,
        times: Times,
        *,
        address: str = "",
        life_limit: float | None = None,
        may_read_history: bool = True,
    ) -> None:
        self._hub = hub
        self._application = application
        self._asked = asked
        self._writer = to_client
        self._times = times
        self._life_limit = life_limit
        self._may_read_history = may_read_history
        self._outcomes: dict[str, recovery.Outcome] = {}
        self._answers: dict[str, _Answer] = {}  # by channel
        self._timers: list[asyncio.TimerHandle] = []
        self.connection = hubs.Connection(
            application.id,
            handshake.new_socket_id(),
            to_client,
            self,
            context=handshake.Client(name="sse", version="", prefix="", address=address),
        )

    # -- the beginning -------------------------------------------------------------------------------------------------

    async def open(self) -> str:
        """Connect to the hub and subscribe to all channels. Returns the cursor at which the events begin. Deliveries
        are held back until `begin`.

        Raises Unavailable, or Over.
        """
        self._hub.connect(self.connection)
        limit = self._application.limits.max_connections
        if limit is not None:
            admission = self._expect(_ADMISSION)
            self._hub.admit(self.connection, limit)
            await self._answered(admission)
        try:
            rules = self._application.rules if self._may_read_history else _NO_RULES
            asked = await recovery.asked(self._hub, self.connection.app, rules, self._asked)
        except engine_errors.EngineError as error:
            raise refusals.Unavailable(error.code, str(error)) from error
        answers = []
        for name, of_channel in asked.items():
            answers.append(self._expect(name))
            self._hub.subscribe(
                self.connection,
                name,
                cached=names.is_cache(name),
                announce=self._application.subscription_counts,
                recovery=of_channel.recovery,
                request=of_channel,
            )
        for answer in answers:
            await self._answered(answer)
        return cursors.text(self._positions())

    def begin(self) -> None:
        """Report the recoveries and start to deliver. The headers must be sent."""
        statements = {name: outcome.statement for name, outcome in self._outcomes.items()}
        positions = self._positions()
        self._writer.start(encoding.retry() + encoding.statement(statements, positions), positions)
        self._hub.count("sse.opened")
        for statement in statements.values():
            self._count(statement)
        loop = asyncio.get_running_loop()
        life = self._times.life * random.uniform(1 - LIFE_SPREAD, 1 + LIFE_SPREAD)  # noqa: S311
        if self._life_limit is not None:
            life = min(life, self._life_limit)
        self._timers = [
            loop.call_later(life, self.end, "life", "The connection's lifetime has ended: reconnect with the last id"),
            loop.call_later(self._times.heartbeat, self._beat),
        ]

    def _positions(self) -> list[interface.Position | None]:
        return [self._outcomes[name].position for name in self._asked.channels]

    def _count(self, statement: dict[str, Any]) -> None:
        if statement["recovered"]:
            self._hub.count("sse.recovered")
        elif statement["was_recovering"]:
            self._hub.count(f"sse.lost.{statement['reason']}")

    def _expect(self, what: str) -> _Answer:
        answer = self._answers[what] = asyncio.get_running_loop().create_future()
        return answer

    async def _answered(self, answered: _Answer) -> None:
        """Wait for the answer. Raises Unavailable if the hub refuses, Over if the client disconnects."""
        await asyncio.wait((answered, self._writer.ended), return_when=asyncio.FIRST_COMPLETED)
        if self.connection.closing:
            raise refusals.Unavailable("restarting", "This worker cannot serve the connection now.")
        if self._writer.ended.done():
            raise Over
        answer = answered.result()
        if isinstance(answer, interface.Refused):
            raise refusals.Unavailable(answer.code, answer.message)

    # -- calls of the hub (fanfare.hub.connections.Owner) --------------------------------------------------------------

    def admitted(self, answer: interface.SubscribeResult | interface.Refused) -> None:
        self._answers[_ADMISSION].set_result(answer)

    def signed_in(self, answer: interface.SubscribeResult | interface.Refused) -> None:
        """SSE connections do not sign in."""

    def subscribed(self, subscription: connections.Subscription, answer: interface.SubscribeResult) -> None:
        name, result, wanted = subscription.channel.name, answer.replayed, subscription.recovery
        self._outcomes[name] = recovery.outcome(subscription.request, result, is_back=self._asked.is_back)
        brings_state = wanted is not None and result is not None and wanted.brings_state(result)
        if names.is_cache(name) and not brings_state:
            self._writer.send(server_frames.cache_miss(name) if answer.cached is None else answer.cached)
        if answer.subscribers:
            self._writer.send(event_frames.subscription_count(name, answer.subscribers))
        self._answers[name].set_result(answer)

    def refreshed(self, subscription: connections.Subscription, answer: interface.SubscribeResult, _: Any) -> None:
        """SSE connections subscribe to a channel once."""

    def refused(self, subscription: connections.Subscription, refusal: interface.Refused) -> None:
        self._answers[subscription.channel.name].set_result(refusal)

    def recovery_failed(self, subscription: connections.Subscription, reason: str, cached: bytes | None) -> None:
        """Live events follow; the client gets a report that earlier ones are missing."""
        statement = {"recovered": False, "was_recovering": self._asked.is_back, "replayed": 0, "reason": reason}
        self._count(statement)
        self._writer.state(subscription.channel.name, statement, subscription.position)
        if cached is not None:
            self._writer.send(cached)

    def event_sent(self, subscription: connections.Subscription) -> None:
        """SSE connections do not call `Hub.watch`: each event has its cursor."""

    # -- while it is open ----------------------------------------------------------------------------------------------

    def _beat(self) -> None:
        self._timers[1] = asyncio.get_running_loop().call_later(self._times.heartbeat, self._beat)
        if self._writer.is_quiet:
            self._writer.comment(encoding.HEARTBEAT)
        self._writer.is_quiet = True

    # -- the end -------------------------------------------------------------------------------------------------------

    def end(self, why: str, message: str) -> None:
        """Close the connection after the client has read the buffered events."""
        if not self.connection.closing:
            self._hub.count(f"sse.ended.{why}")
            self.connection.close(close_codes.RECONNECT, message)

    def revoked(self, _: Any, reason: str, message: str) -> None:
        """See fanfare.protocol.revocations.Holder."""
        self.end(reason, message)

    def restart(self, *, returns: bool) -> None:
        """The server stops, and waits for open responses first. The client's `retry:` has a spread of its own, whether
        or not it `returns` to another server."""
        self.end("restart", "The server is restarting: reconnect with the last id")
        asyncio.get_running_loop().call_later(CLOSE_S, self.abort)

    def abort(self) -> None:
        """The client did not read to the end in time."""
        if not self._writer.is_gone():
            self._writer.abort()

    def forget(self) -> None:
        """The response is over; the HTTP connection may serve others."""
        self._writer.lost()
        for timer in self._timers:
            timer.cancel()
        self._hub.disconnect(self.connection)
        self.connection.owner = connections.ENDED
