"""Two sockets with one token: the newer one has it.

A page has one socket, so a second one means that the first is dead and nobody has noticed, or that the token is not a
page's own: somebody pasted it for everybody. In the first case the older socket is closed, and comes back if it was
alive after all. In the second they would throw each other out for ever; so a token that changes hands twice within
`SHARED_SECONDS` is given to nobody, and nobody is closed.

The workers tell each other through the log: `resume.taken` (this socket has the token now), `resume.evicted` (it was
taken from a living one), `resume.shared` (it is given to nobody).
"""

from __future__ import annotations

import asyncio
import collections
import logging
from collections.abc import Callable
from typing import Protocol

import orjson

from fanfare.engine import errors as engine_errors
from fanfare.engine import interface
from fanfare.hub import hub as hubs
from fanfare.runtime import timer_wheel

logger = logging.getLogger(__name__)

SHARED_SECONDS = 10.0
TURN_S = 0.1  # of the wheel: how finely the times of pages that came together are spread
REFUSED_SECONDS = 60.0  # how long a shared token gets nothing; then somebody may have mended the page

TAKEN, EVICTED, SHARED = "resume.taken", "resume.evicted", "resume.shared"


class Holder(Protocol):
    """A connected page."""

    socket_id: str
    slot: set[Holder] | None  # of the timer wheel

    def look(self) -> None:
        """The time that was set in the wheel has come."""

    def keep(self) -> None:
        """Write down its progress."""

    def evict(self) -> None:
        """Keep its progress, and close it so that it comes back."""

    def forget_token(self) -> None:
        """Go on without a token."""


Key = tuple[str, str]  # application, token
# When something happened to a token, or until when it holds: oldest first, and what is over leaves at the front. (A
# plain dict would pass by all that left before.)
Times = collections.OrderedDict[Key, float]


class SessionOwners:
    """The tokens of one worker's sockets. `clock`: monotonic seconds. In the `wheel` stand the pages that have one."""

    def __init__(self, hub: hubs.Hub, clock: Callable[[], float]) -> None:
        self._hub = hub
        self._clock = clock
        self.wheel: timer_wheel.TimerWheel[Holder] = timer_wheel.TimerWheel(
            "resume tokens", TURN_S, lambda holder: holder.look()
        )
        self._holders: dict[Key, Holder] = {}
        self._confirmed: set[Key] = set()  # whose taking has been read back from the log
        self._evicted: Times = Times()  # when a living socket lost the token
        self._refused: Times = Times()  # until when it is given to nobody
        self._tasks: set[asyncio.Future[list[interface.Receipt]]] = set()
        hub.on_control(TAKEN, self._taken)
        hub.on_control(EVICTED, self._note_eviction)
        hub.on_control(SHARED, self._note_shared)
        hub.on_gap(self._keep)

    def take(self, app: str, token: str, holder: Holder) -> bool:
        """`holder` has the token from now on. False: nobody gets this one."""
        key = (app, token)
        if self._refused.get(key, 0.0) > self._clock():
            self._hub.count("resume.token_shared")
            return False
        before = self._holders.get(key)
        self._holders[key] = holder
        self._confirmed.discard(key)
        if before is not None:
            self._replace(key, before)
        self._tell(TAKEN, app, {"token": token, "socket": holder.socket_id})
        return True

    def release(self, app: str, token: str, holder: Holder) -> None:
        if self._holders.get((app, token)) is holder:
            self._drop((app, token))

    def _keep(self) -> None:
        """The log may be a new one that knows nothing of these pages. Who came back to that would pass for a page that
        has just been opened, and not hear of its loss."""
        for holder in self._holders.values():
            holder.keep()

    def _drop(self, key: Key) -> None:
        del self._holders[key]
        self._confirmed.discard(key)

    def _replace(self, key: Key, before: Holder) -> None:
        app, token = key
        if self._clock() - self._evicted.get(key, float("-inf")) < SHARED_SECONDS:
            before.forget_token()
            self._tell(SHARED, app, {"token": token})
            return
        self._note_eviction(app, orjson.dumps({"token": token}))
        self._hub.count("resume.evicted")
        self._hub.flush()  # what was published before is not lost to a page that is alive after all
        before.evict()
        self._tell(EVICTED, app, {"token": token})

    # -- from the log --------------------------------------------------------------------------------------------------

    def _taken(self, app: str, body: bytes) -> None:
        said = orjson.loads(body)
        key = (app, said["token"])
        holder = self._holders.get(key)
        if holder is None:
            return
        if holder.socket_id == said["socket"]:
            self._confirmed.add(key)
        elif key in self._confirmed:
            self._drop(key)
            self._replace(key, holder)
        # Otherwise the log has our own socket's word still to come, so ours is the newer one.

    def _note_eviction(self, app: str, body: bytes) -> None:
        now = self._clock()
        _forget(self._evicted, now - SHARED_SECONDS)
        _note(self._evicted, (app, orjson.loads(body)["token"]), now)

    def _note_shared(self, app: str, body: bytes) -> None:
        now = self._clock()
        _forget(self._refused, now)
        key = (app, orjson.loads(body)["token"])
        _note(self._refused, key, now + REFUSED_SECONDS)
        logger.warning("A resume token of application %s is used by several pages: they get no resume", app)
        holder = self._holders.get(key)
        if holder is not None:
            self._drop(key)
            self._hub.count("resume.token_shared")
            holder.forget_token()

    def _tell(self, command: str, app: str, body: dict[str, str]) -> None:
        publication = interface.Publication(app, command, orjson.dumps(body), interface.Kind.CONTROL)
        try:
            told = asyncio.ensure_future(self._hub.publish([publication]))
        except engine_errors.EngineError as error:
            logger.warning("%s could not be told: %s", command, error)
            return
        self._tasks.add(told)
        told.add_done_callback(self._told)

    def _told(self, told: asyncio.Future[list[interface.Receipt]]) -> None:
        self._tasks.discard(told)
        if not told.cancelled() and isinstance(told.exception(), engine_errors.EngineError):
            # The older socket stays until it is found dead: more may be sent twice, nothing is lost.
            logger.warning("Another worker could not be told of a token: %s", told.exception())


def _note(times: Times, key: Key, when: float) -> None:
    times[key] = when
    times.move_to_end(key)


def _forget(times: Times, before: float) -> None:
    while times and next(iter(times.values())) < before:
        times.popitem(last=False)
