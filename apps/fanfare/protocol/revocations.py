"""Revocation of capability tokens, in every worker: one token by its `jti`, or all tokens of a terminated user.

The command is a CONTROL entry of the log; it ends the subscriptions and SSE connections that use the token. A record
in the log keeps the token refused until it expires, in every worker and after a restart. A worker reads the
records of a token when it first sees it, and remembers the answer: later revocations reach it as commands. After a gap
of the log, in which a command may have been lost, it reads them again.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from typing import Any, Final, Protocol

import orjson

from fanfare.engine import errors as engine_errors
from fanfare.engine import interface
from fanfare.hub import hub as hubs
from fanfare.protocol import capabilities, refusals, termination
from fanfare.runtime.backoff import Backoff
from fanfare.runtime.log_throttle import LogThrottle

_log = LogThrottle(logging.getLogger(__name__))

COMMAND: Final = "capability.revoke"
RECORD_PREFIX: Final = "#revoked-"  # and the token's id: the channel that keeps the record
MESSAGE: Final = "The application revoked this token"
RECHECK_S: Final = 10.0  # the longest pause between two checks of the tokens in use
RECORD_S: Final = capabilities.MAX_LIFE_S + capabilities.MAX_AHEAD_S  # the longest that a token can be valid from now
REMEMBERED: Final = 10_000  # answers of the engine in a worker, about 200 bytes each

_TOKEN: Final = "jti"  # noqa: S105
_USER: Final = "sub"

_Key = tuple[str, str, str]  # application, _TOKEN or _USER, and its value

NEVER: Final = 0.0  # not revoked: tokens that were issued after it are valid
FOR_EVER: Final = float("inf")

_by_hub: weakref.WeakKeyDictionary[Any, Revocations] = weakref.WeakKeyDictionary()


class Holder(Protocol):
    """A connection that uses a capability: a session or an SSE connection."""

    def revoked(self, capability: capabilities.Capability, reason: str, message: str, /) -> None:
        """End what was begun with this capability."""


def publications(app: str, token_id: str, *, expires: float | None, now: float) -> list[interface.Publication]:
    """The entries to publish together, in this order: a client that reconnects because of the command finds the record.
    `expires`: Unix time at which the token ends; without it the record is kept for the longest life of a token.
    """
    seconds = RECORD_S if expires is None else max(1, int(expires - now) + 1)
    return [
        interface.Publication(
            app,
            RECORD_PREFIX + token_id,
            orjson.dumps({"at": now}),
            interface.Kind.MESSAGE,
            retention=interface.Retention(termination.RECORDS, min(seconds, RECORD_S)),
        ),
        interface.Publication(app, COMMAND, orjson.dumps({"jti": token_id, "exp": expires}), interface.Kind.CONTROL),
    ]


def of(hub: hubs.Hub) -> Revocations:
    """Those of this worker. The first call, before the hub starts, registers the commands."""
    found = _by_hub.get(hub)
    if found is None:
        found = _by_hub[hub] = Revocations(hub)
    return found


class Revocations:
    """What this worker knows about revoked tokens, and which of its connections use which tokens."""

    def __init__(self, hub: hubs.Hub) -> None:
        self._hub = weakref.proxy(hub)
        self._revoked_at: dict[_Key, float] = {}  # Unix time, NEVER or FOR_EVER; the oldest answer first
        self._reads: dict[_Key, asyncio.Task[None]] = {}
        self._gap = object()  # the newest one; another object after each
        self._check: asyncio.Task[None] | None = None  # of the tokens in use, after gaps
        self._holders: dict[_Key, dict[tuple[Holder, capabilities.Capability], None]] = {}
        hub.on_control(COMMAND, self._revoke)
        termination.on_terminated(hub, self._terminate)
        hub.on_gap(self._on_gap)

    # -- questions -----------------------------------------------------------------------------------------------------

    def is_valid(self, app: str, capability: capabilities.Capability) -> bool:
        """False if `read` must be called first. Raises InvalidToken if the capability was revoked."""
        known = True
        for key in _keys(app, capability):
            at = self._revoked_at.get(key)
            if at is None:
                known = False
            elif at != NEVER and (capability.issued is None or capability.issued <= at):
                if key[1] == _TOKEN:
                    raise refusals.InvalidToken(MESSAGE, reason="revoked_token")
                raise refusals.InvalidToken(
                    "The application ended this user's connections after it issued the token", reason="terminated"
                )
        return known

    async def read(self, app: str, capability: capabilities.Capability) -> None:
        """Make a capability known. Raises EngineError."""
        for key in _keys(app, capability):
            if key not in self._revoked_at:
                task = self._reads.get(key)
                if task is None:
                    task = self._reads[key] = self._hub.supervisor.spawn(
                        "read of a revocation", self._read(key), expected=(engine_errors.EngineError,)
                    )
                await asyncio.shield(task)

    async def read_and_check(self, app: str, capability: capabilities.Capability) -> None:
        """Raises InvalidToken, EngineError."""
        while not self.is_valid(app, capability):
            await self.read(app, capability)

    async def _read(self, key: _Key) -> None:
        try:
            at, gap = NEVER, None
            while gap is not self._gap:
                gap = self._gap
                at = await _revoked_at(self._hub.engine, key)
            # A command may have been executed while the record was read.
            self._remember(key, max(at, self._revoked_at.get(key, NEVER)))
        finally:
            del self._reads[key]

    def _remember(self, key: _Key, at: float) -> None:
        self._revoked_at.pop(key, None)
        self._revoked_at[key] = at
        while len(self._revoked_at) > REMEMBERED:
            del self._revoked_at[next(iter(self._revoked_at))]

    # -- connections ---------------------------------------------------------------------------------------------------

    def hold(self, app: str, capability: capabilities.Capability, holder: Holder) -> None:
        """Call `holder.revoked` if this capability is revoked from now on. Idempotent."""
        for key in _keys(app, capability):
            self._holders.setdefault(key, {})[holder, capability] = None

    def release(self, app: str, capability: capabilities.Capability, holder: Holder) -> None:
        """Idempotent."""
        for key in _keys(app, capability):
            holders = self._holders.get(key)
            if holders is not None:
                holders.pop((holder, capability), None)
                if not holders:
                    del self._holders[key]

    # -- commands ------------------------------------------------------------------------------------------------------

    def _revoke(self, app: str, argument: bytes) -> None:
        key = (app, _TOKEN, str(orjson.loads(argument)["jti"]))
        self._remember(key, FOR_EVER)
        self._hub.count("capabilities.revoked")
        self._end(key, "revoked_token", MESSAGE)

    def _terminate(self, app: str, user_id: str, at: float | None) -> None:
        """`at` is None if the user's clients are to reconnect, with the tokens they have."""
        key = (app, _USER, user_id)
        if at is not None:
            self._remember(key, at)
        self._end(key, "terminated", termination.MESSAGE)

    def _on_gap(self) -> None:
        """Commands may have been lost. A gap of one part of the log does not close every connection."""
        self._gap = object()
        self._revoked_at.clear()
        if self._check is None or self._check.done():
            self._check = self._hub.supervisor.spawn("check of the tokens in use", self._check_held())

    async def _check_held(self) -> None:
        """A gap and an unavailable store often coincide, so the check is repeated until it has read every record. After
        another gap it begins again: on Redis each partition reports a gap of its own."""
        backoff = Backoff(longest_s=RECHECK_S)
        checked = None
        while checked is not self._gap:
            before = self._gap
            try:
                await self._check_each()
            except engine_errors.EngineError as error:
                pause_s = backoff.failed()
                _log.warning("The revocations of tokens in use cannot be read: %s; again in %.1f s", error, pause_s)
                await asyncio.sleep(pause_s)
            else:
                checked = before

    async def _check_each(self) -> None:
        """Raises EngineError."""
        for key, holders in list(self._holders.items()):
            for holder, capability in list(holders):
                try:
                    await self.read_and_check(key[0], capability)
                except refusals.InvalidToken as error:
                    with self._hub.isolated("A connection with a revoked token could not be ended"):
                        holder.revoked(capability, error.reason, error.message)

    def _end(self, key: _Key, reason: str, message: str) -> None:
        holders = self._holders.get(key)
        if not holders:
            return
        self._hub.flush()  # earlier events are delivered before the end
        for holder, capability in list(holders):
            with self._hub.isolated("A connection with a revoked token could not be ended"):
                holder.revoked(capability, reason, message)


def _keys(app: str, capability: capabilities.Capability) -> list[_Key]:
    keys = []
    if capability.token_id is not None:
        keys.append((app, _TOKEN, capability.token_id))
    if capability.user_id is not None:
        keys.append((app, _USER, capability.user_id))
    return keys


async def _revoked_at(engine: interface.Engine, key: _Key) -> float:
    app, kind, value = key
    if kind == _USER:
        return await termination.terminated_at(engine, app, value) or NEVER
    return FOR_EVER if await termination.last_record(engine, app, RECORD_PREFIX + value) else NEVER
