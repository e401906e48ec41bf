"""Proof that events flow: a worker writes an entry to the log and reads it back, as subscribers would.

An engine that accepts calls is not sufficient: the writer's thread may have ended, or the reader may have stopped. The
entry goes to a mailbox of this worker alone, so no other worker reads it.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import Final

from fanfare.engine import errors as engine_errors
from fanfare.engine import interface
from fanfare.hub import hub as hubs
from fanfare.runtime.supervisor import Supervisor

FRESH_S: Final = 2.0  # a result younger than this is reused
VALID_S: Final = 5.0  # a result older than this is not valid
WAIT_S: Final = 0.8  # how long a response waits for a new result; most load balancers time out after 1 s


class Probe:
    """One per worker; all calls on the hub's loop. A probe is written only when it is asked for."""

    def __init__(self, hub: hubs.Hub, tasks: Supervisor) -> None:
        self._hub = hub
        self._tasks = tasks
        self._mailbox = f"#probe-{secrets.token_hex(8)}"
        self._token = ""  # of the pending entry
        self._is_back = asyncio.Event()
        self._proved_at = float("-inf")  # time.monotonic() of the last write that was read back
        self._error = ""
        self._attempt: asyncio.Task[None] | None = None
        hub.on_message(self._mailbox, self._on_probe)

    async def problem(self) -> str:
        """Empty if an entry of this worker was read back within the last `VALID_S` seconds, otherwise the fault."""
        if self._age() > FRESH_S:
            if self._attempt is None or self._attempt.done():
                self._attempt = self._tasks.spawn("health probe", self._try())
            await asyncio.wait([self._attempt], timeout=WAIT_S)
        if self._age() <= VALID_S:
            return ""
        return self._error or f"This worker has not read back an entry of its own within {VALID_S:g} s."

    def _age(self) -> float:
        return time.monotonic() - self._proved_at

    async def _try(self) -> None:
        self._token = secrets.token_hex(8)
        self._is_back.clear()
        began = time.monotonic()
        entry = interface.Publication("", self._mailbox, self._token.encode(), interface.Kind.MESSAGE)
        try:
            async with asyncio.timeout(VALID_S):
                await self._hub.engine.append([entry])
                await self._is_back.wait()
        except engine_errors.EngineError as error:
            self._error = str(error)
        except TimeoutError:
            self._error = ""
        else:
            self._proved_at, self._error = began, ""

    def _on_probe(self, body: bytes) -> None:
        if bytes(body) == self._token.encode():
            self._is_back.set()
