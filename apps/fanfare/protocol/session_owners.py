"""Which socket owns a resume token. The newest socket does.

A page has one socket. A second one with the same token means either that the first is dead and its end has not been
noticed, or that the token is not a page's own, because it stands in a page that many visitors load. In the first case
the older socket is closed with 4200; if it was not dead after all, its page comes back. In the second case the pages
would close each other forever, so a token that changes its owner twice within `SHARED_S` is refused for all pages, and
no socket is closed for it.

The workers tell each other through the log: `resume.taken` (this socket owns the token now), `resume.evicted` (it was
taken from a connected socket), `resume.shared` (it is refused from now on).
"""

from __future__ import annotations

import collections
import functools
import logging
from collections.abc import Callable
from typing import Protocol

import orjson

from fanfare.engine import interface
from fanfare.hub import hub as hubs
from fanfare.runtime.log_throttle import LogThrottle
from fanfare.runtime.timer_wheel import TimerWheel

SHARED_S = 10.0
REFUSED_S = 60.0  # for so long a shared token is refused; the page may have been corrected by then
TURN_S = 0.1  # of the wheel: how finely the times of pages that came together are spread
MAX_NOTED = 10_000  # tokens whose evictions or refusals are remembered; above it the oldest are forgotten

TAKEN, EVICTED, SHARED = "resume.taken", "resume.evicted", "resume.shared"

_log = LogThrottle(logging.getLogger(__name__))


class SessionOwner(Protocol):
    """A connected page with a token."""

    socket_id: str
    slot: set[SessionOwner] | None  # of the timer wheel

    def due(self) -> None:
        """The time that was set in the wheel has come."""

    def save(self) -> None:
        """Store the page's record."""

    def evict(self) -> None:
        """Store the record, and close the socket so that the page comes back if it is alive."""

    def lose_token(self) -> None:
        """Go on without a token: several pages use it."""


Key = tuple[str, str]  # application, token
# When an eviction was, or until when a refusal holds. The oldest are first and leave at the front.
Times = collections.OrderedDict[Key, float]


class SessionOwners:
    """The tokens of one worker's sockets. `clock`: monotonic seconds. `wheel`: of the pages that own a token."""

    def __init__(self, hub: hubs.Hub, clock: Callable[[], float]) -> None:
        self._hub = hub
        self._clock = clock
        self.wheel: TimerWheel[SessionOwner] = TimerWheel("resume tokens", TURN_S, lambda page: page.due())
        self._owners: dict[Key, SessionOwner] = {}
        self._confirmed: set[Key] = set()  # tokens whose `resume.taken` was read back from the log
        self._evicted: Times = Times()
        self._refused: Times = Times()
        hub.on_control(TAKEN, self._on_taken)
        hub.on_control(EVICTED, self._on_evicted)
        hub.on_control(SHARED, self._on_shared)
        hub.on_gap(self._save_all)

    def take(self, app: str, token: str, page: SessionOwner) -> bool:
        """`page` owns the token from now on. False: the token is refused, because several pages use it."""
        key = (app, token)
        if self._refused.get(key, 0.0) > self._clock():
            self._hub.count("resume.token_shared")
            return False
        before = self._owners.get(key)
        self._owners[key] = page
        self._confirmed.discard(key)
        if before is not None:
            self._replace(key, before)
        self._announce(TAKEN, app, {"token": token, "socket": page.socket_id})
        return True

    def release(self, app: str, token: str, page: SessionOwner) -> None:
        if self._owners.get((app, token)) is page:
            self._drop((app, token))

    def _save_all(self) -> None:
        """The log may be a new one without these records. A page that came back to that would pass for a new page, and
        its loss would be silent."""
        for page in list(self._owners.values()):
            try:
                page.save()
            except Exception as error:  # noqa: BLE001  (of one page: the others are saved)
                _log.error("The record of a page could not be saved", error=error)

    def _drop(self, key: Key) -> None:
        del self._owners[key]
        self._confirmed.discard(key)

    def _replace(self, key: Key, before: SessionOwner) -> None:
        app, token = key
        if self._clock() - self._evicted.get(key, float("-inf")) < SHARED_S:
            before.lose_token()
            self._announce(SHARED, app, {"token": token})
            return
        self._on_evicted(app, orjson.dumps({"token": token}))
        self._hub.count("resume.evicted")
        self._hub.flush()  # a page that is alive after all has what was published before
        before.evict()
        self._announce(EVICTED, app, {"token": token})

    # -- from the log --------------------------------------------------------------------------------------------------

    def _on_taken(self, app: str, body: bytes) -> None:
        fields = orjson.loads(body)
        key = (app, fields["token"])
        owner = self._owners.get(key)
        if owner is None:
            return
        if owner.socket_id == fields["socket"]:
            self._confirmed.add(key)
        elif key in self._confirmed:
            self._drop(key)
            self._replace(key, owner)
        # Otherwise this worker's own announcement comes later in the log, so its socket is the newer one.

    def _on_evicted(self, app: str, body: bytes) -> None:
        now = self._clock()
        _note(self._evicted, (app, orjson.loads(body)["token"]), now, over=now - SHARED_S)

    def _on_shared(self, app: str, body: bytes) -> None:
        now = self._clock()
        key = (app, orjson.loads(body)["token"])
        _note(self._refused, key, now + REFUSED_S, over=now)
        _log.warning("A resume token of application %s is used by several pages: they are not resumed", app)
        owner = self._owners.get(key)
        if owner is not None:
            self._drop(key)
            self._hub.count("resume.token_shared")
            owner.lose_token()

    def _announce(self, command: str, app: str, body: dict[str, str]) -> None:
        publication = interface.Publication(app, command, orjson.dumps(body), interface.Kind.CONTROL)
        self._hub.post(publication, functools.partial(self._not_announced, command))

    def _not_announced(self, command: str, why: str) -> None:
        """The older socket stays until it is found dead: events may come twice, and none is lost."""
        _log.warning("%s could not be announced: %s", command, why)


def _note(times: Times, key: Key, when: float, *, over: float) -> None:
    """`over`: entries before this time are of no use any more."""
    times.pop(key, None)
    while times and (next(iter(times.values())) < over or len(times) >= MAX_NOTED):
        times.popitem(last=False)
    times[key] = when
