"""One client's event stream at the hub, from its admission to its end."""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from fanfare.applications import registry as registries
from fanfare.engine import errors as engine_errors
from fanfare.engine import interface
from fanfare.hub import connections, event_frames
from fanfare.hub import hub as hubs
from fanfare.protocol import handshake, names, server_frames
from fanfare.sse import cursors, encoding, recovery, refusals, requests, writer

# Streams that began together do not end together.
LIFE_SPREAD: Final = 0.2


_Answer = asyncio.Future[interface.SubscribeResult | interface.Refused]


class Over(Exception):
    """The stream ended before it began: the client hung up."""


@dataclass(frozen=True, slots=True)
class Times:
    """In seconds. `heartbeat`: of silence, before a comment that tells proxies and readers that it lives. `life`: about
    so long, then the client comes back, maybe to another worker: so load spreads and an old worker empties.
    """

    heartbeat: float = 15.0
    life: float = 600.0


DEFAULT_TIMES: Final = Times()


class Stream:
    """`life_limit`: seconds until its token expires."""

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
    ) -> None:
        self._hub = hub
        self._application = application
        self._asked = asked
        self._writer = to_client
        self._times = times
        self._life_limit = life_limit
        self._outcomes: dict[str, recovery.Outcome] = {}
        self._timers: list[asyncio.TimerHandle] = []
        self.connection = hubs.Connection(
            application.id,
            handshake.new_socket_id(),
            to_client,
            handshake.Client(name="sse", version="", prefix="", address=address),
        )

    # -- the beginning -------------------------------------------------------------------------------------------------

    async def open(self) -> str:
        """Take a place at the hub and on every channel. The cursor at which it begins; what comes is held back.

        Raises Unavailable, or Over.
        """
        self._hub.connect(self.connection)
        limit = self._application.limits.max_connections
        if limit is not None:
            await self._answered(self._ask(functools.partial(self._hub.admit, self.connection, limit)))
        try:
            wishes = await recovery.wishes(self._hub, self.connection.app, self._application.rules, self._asked)
        except engine_errors.EngineError as error:
            raise refusals.Unavailable(error.code, str(error)) from error
        for answer in [self._ask(functools.partial(self._subscribe, name, wish)) for name, wish in wishes.items()]:
            await self._answered(answer)
        return cursors.text(self._places())

    def begin(self) -> None:
        """The headers are sent: say what became of the past, and deliver."""
        statements = {name: outcome.statement for name, outcome in self._outcomes.items()}
        places = self._places()
        self._writer.start(encoding.retry() + encoding.statement(statements, places), places)
        self._hub.count("sse.opened")
        for statement in statements.values():
            self._count(statement)
        loop = asyncio.get_running_loop()
        life = self._times.life * random.uniform(1 - LIFE_SPREAD, 1 + LIFE_SPREAD)  # noqa: S311
        if self._life_limit is not None:
            life = min(life, self._life_limit)
        self._timers = [
            loop.call_later(life, self.end, "life", "This stream has had its time: come back with the last id"),
            loop.call_later(self._times.heartbeat, self._beat),
        ]

    def _places(self) -> list[interface.Position | None]:
        return [self._outcomes[name].place for name in self._asked.channels]

    def _count(self, statement: dict[str, Any]) -> None:
        if statement["recovered"]:
            self._hub.count("sse.recovered")
        elif statement["was_recovering"]:
            self._hub.count(f"sse.lost.{statement['reason']}")

    def _ask(self, ask: Callable[[interface.Ready], None]) -> _Answer:
        """Ask the hub."""
        answered: _Answer = asyncio.get_running_loop().create_future()
        ask(answered.set_result)
        return answered

    async def _answered(self, answered: _Answer) -> None:
        """Wait for it. Raises Unavailable if the hub refuses, Over if the client does not wait."""
        await asyncio.wait((answered, self._writer.ended), return_when=asyncio.FIRST_COMPLETED)
        if self.connection.closing:
            raise refusals.Unavailable("restarting", "This worker cannot serve the stream now.")
        if self._writer.ended.done():
            raise Over
        answer = answered.result()
        if isinstance(answer, interface.Refused):
            raise refusals.Unavailable(answer.code, answer.message)

    def _subscribe(self, name: str, wish: recovery.Wish, ready: interface.Ready) -> None:
        def subscribed(answer: interface.SubscribeResult | interface.Refused) -> None:
            if isinstance(answer, interface.SubscribeResult):
                self._subscribed(name, wish, answer)
            ready(answer)

        past = None
        if wish.history is not None:
            past = connections.Past(wish.history, lost=functools.partial(self._lost, name))
        self._hub.subscribe(
            self.connection,
            name,
            subscribed,
            cached=names.is_cache(name),
            announce=self._application.subscription_counts,
            past=past,
        )

    def _subscribed(self, name: str, wish: recovery.Wish, answer: interface.SubscribeResult) -> None:
        """Called at the instant from which the channel is delivered."""
        outcome = self._outcomes[name] = recovery.outcome(wish, answer.replayed, is_back=self._asked.is_back)
        # The state of a cache channel, unless the client has it, or gets it with its past.
        if names.is_cache(name) and not outcome.statement["recovered"] and not outcome.statement["replayed"]:
            self._writer.send(server_frames.cache_miss(name) if answer.cached is None else answer.cached)
        if answer.subscribers:
            self._writer.send(event_frames.subscription_count(name, answer.subscribers))

    # -- the middle ----------------------------------------------------------------------------------------------------

    def _lost(self, name: str, reason: str) -> None:
        """A long replay could not be finished. What follows is the present."""
        statement = {"recovered": False, "was_recovering": self._asked.is_back, "replayed": 0, "reason": reason}
        self._count(statement)
        self._writer.state(name, statement, self._hub.position(self.connection, name))

    def _beat(self) -> None:
        self._timers[1] = asyncio.get_running_loop().call_later(self._times.heartbeat, self._beat)
        if self._writer.is_quiet:
            self._writer.comment(encoding.HEARTBEAT)
        self._writer.is_quiet = True

    # -- the end -------------------------------------------------------------------------------------------------------

    def end(self, why: str, message: str) -> None:
        """Let the client read what was written, and go."""
        if not self.connection.closing:
            self._hub.count(f"sse.ended.{why}")
            self.connection.close(hubs.RECONNECT, message)

    def abort(self) -> None:
        """It did not read to the end in time."""
        if not self._writer.is_gone():
            self._writer.abort()

    def forget(self) -> None:
        """The response is over; the HTTP connection may serve others."""
        self._writer.lost()
        for timer in self._timers:
            timer.cancel()
        self._hub.disconnect(self.connection)
