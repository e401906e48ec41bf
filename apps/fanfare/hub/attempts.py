"""Requests of connections to the engine, repeated for a few seconds while the engine is unavailable.

A client whose subscribe is refused stays without the channel: pusher-js subscribes again only when it reconnects. A
store that restarts or elects a new leader is back within seconds, so the hub repeats the request; the owner of the
connection gets the refusal when `REPEATED_S` are over.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from fanfare.engine import errors, interface
from fanfare.hub import connections
from fanfare.runtime import backoff
from fanfare.runtime.supervisor import Supervisor

REPEATED_S = 10.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 2.0  # between two attempts; the engine itself waits up to 3 s for its store

# The request to send now; None if it is not needed any more.
Wanted = Callable[[], interface.SubscribeRequest | None]


class Attempts:
    """The requests of one hub. `failed`: an answer or a request raised, and its subscription is incomplete."""

    def __init__(
        self,
        engine: interface.Engine,
        supervisor: Supervisor,
        count: Callable[[str], None],
        failed: Callable[[connections.Connection, Exception], None],
    ) -> None:
        self.engine = engine
        self.supervisor = supervisor
        self.count = count
        self.failed = failed

    def attach(self, connection: connections.Connection, wanted: Wanted, ready: interface.Ready) -> None:
        """`Engine.attach`, repeated. `ready` is called once, or not at all if `wanted` returns None."""
        _Attempt(self, connection, wanted, ready, time.monotonic()).ask()

    def repeat(
        self,
        connection: connections.Connection,
        wanted: Wanted,
        ready: interface.Ready,
        asked_s: float,
        refusal: interface.Refused,
    ) -> None:
        """As `attach`, after a first request that the engine has refused. `asked_s`: its time.monotonic()."""
        _Attempt(self, connection, wanted, ready, asked_s).answered(refusal)


class _Attempt:
    __slots__ = ("_attempts", "_connection", "_deadline_s", "_failures", "_ready", "_wanted")

    def __init__(
        self,
        attempts: Attempts,
        connection: connections.Connection,
        wanted: Wanted,
        ready: interface.Ready,
        asked_s: float,
    ) -> None:
        self._attempts = attempts
        self._connection = connection
        self._wanted = wanted
        self._ready = ready
        self._failures = 0
        self._deadline_s = asked_s + REPEATED_S

    def ask(self) -> None:
        request = self._wanted()
        if request is not None:
            self._attempts.engine.attach(request, self.answered)

    def answered(self, answer: interface.SubscribeResult | interface.Refused) -> None:
        if isinstance(answer, interface.Refused) and answer.code == errors.EngineUnavailable.code:
            self._failures += 1
            pause_s = backoff.pause_s(self._failures, FIRST_PAUSE_S, LONGEST_PAUSE_S)
            if time.monotonic() + pause_s < self._deadline_s:
                self._attempts.count("subscribes.repeated")
                self._attempts.supervisor.spawn("repeated subscribe", self._ask_after(pause_s))
                return
        try:
            self._ready(answer)
        except Exception as error:  # noqa: BLE001  (the subscription would wait for ever: the client reconnects)
            self._attempts.failed(self._connection, error)

    async def _ask_after(self, pause_s: float) -> None:
        await asyncio.sleep(pause_s)
        try:
            self.ask()
        except Exception as error:  # noqa: BLE001
            self._attempts.failed(self._connection, error)
