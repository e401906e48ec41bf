"""Ownership of resume tokens: the newest socket with a token owns it.

A page has one socket. A second one with the same token means either that the first is dead and its end has not been
noticed, or that the token is not a page's own, because it stands in a page that many visitors load. The older socket
gets a ping and is closed with 4200. If its client answers the ping, the older socket was alive, and its page reconnects
and takes the token back. Such pages would close each other forever, so a token is refused for all pages if it is taken
a second time within `SHARED_S` and the client of the first takeover has answered. A page whose connections break at
short intervals answers no ping on the broken ones, and is not refused.

The engine decides who owns a token: `take_session` answers with the owner before, and only that owner's worker gets a
message. Both sides see the same number of seconds since the owner changed the last time and read the same record of the
answer, so both come to the same decision. A refused token has a record that says until when, and from which a later
socket learns that the page may have lost events.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

import orjson

from fanfare.engine import errors as engine_errors
from fanfare.engine import interface
from fanfare.hub import hub as hubs
from fanfare.protocol.ack_tracker import SHARED_UNTIL
from fanfare.runtime.log_throttle import LogThrottle
from fanfare.runtime.timer_wheel import TimerWheel

SHARED_S = 10
ANSWERED = "#answered"  # after a token: the record of an older socket's answer; no token contains this character
REFUSED_S = 60  # for so long a shared token is refused; the page may have been corrected by then
TURN_S = 0.1  # of the wheel: how finely the times of pages that came together are spread

_log = LogThrottle(logging.getLogger(__name__))


class SessionOwner(Protocol):
    """A connected page with a token."""

    socket_id: str
    slot: set[SessionOwner] | None  # of the timer wheel

    def due(self) -> None:
        """The time that was set in the wheel has come."""

    def save(self) -> None:
        """Store the page's record."""

    def evict(self, answered: Callable[[], None]) -> None:
        """Ping the client, and close the socket so that its page reconnects if it is alive. `answered` is called if
        the client answers the ping."""

    def lose_token(self) -> None:
        """Go on without a token: several pages use it."""


class _Owned(NamedTuple):
    app: str
    token: str
    page: SessionOwner


class SessionOwners:
    """The tokens of one worker's sockets. `clock`: Unix seconds. `wheel`: of the pages that own a token."""

    def __init__(self, hub: hubs.Hub, clock: Callable[[], float] = time.time) -> None:
        self._hub = hub
        self._clock = clock
        self.wheel: TimerWheel[SessionOwner] = TimerWheel("resume tokens", TURN_S, lambda page: page.due())
        self._owned: dict[str, _Owned] = {}  # by socket id; also while the engine has not answered yet
        hub.on_session_taken(self._on_taken)
        hub.on_gap(self._save_all)

    def is_shared(self, record: bytes | None) -> bool:
        """Whether a record says that its token is refused, because several pages use it."""
        if record is None or SHARED_UNTIL.encode() not in record:
            return False
        until: float = orjson.loads(record).get(SHARED_UNTIL, 0.0)
        return until > self._clock()

    async def take(self, app: str, token: str, page: SessionOwner) -> interface.Taken | None:
        """Make `page` the owner. None: the token is refused, or a newer socket has taken it meanwhile and the page's
        `evict` or `lose_token` was called. Raises EngineUnavailable."""
        owned = self._owned[page.socket_id] = _Owned(app, token, page)
        try:
            taken = await self._hub.engine.take_session(app, token, page.socket_id)
            is_shared = taken.holder is not None and await self._is_shared_after(taken.changed_s, owned)
        except BaseException:
            self.release(page)
            raise
        if self._owned.get(page.socket_id) is not owned:
            return None
        if is_shared:
            self.release(page)
            self._refuse(owned)
            return None
        return taken

    def owns(self, page: SessionOwner) -> bool:
        return page.socket_id in self._owned

    def release(self, page: SessionOwner) -> None:
        """The page's socket is gone, or goes on without the token. Idempotent."""
        self._owned.pop(page.socket_id, None)

    def _refuse(self, owned: _Owned) -> None:
        _log.warning("A resume token of application %s is used by several pages: they are not resumed", owned.app)
        self._hub.count("resume.token_shared")
        self._hub.engine.save_session(
            owned.app,
            owned.token,
            orjson.dumps({SHARED_UNTIL: self._clock() + REFUSED_S}),
            REFUSED_S,
            holder=owned.page.socket_id,
            release=True,
        )

    def _on_taken(self, app: str, holder: str, body: bytes) -> None:
        """A newer socket has taken the token from a socket of this worker."""
        owned = self._owned.get(holder)
        fields = orjson.loads(body)
        if owned is None or (owned.app, owned.token) != (app, fields["token"]):
            return
        self.release(owned.page)
        if _is_recent(fields["changed_s"]):
            self._hub.supervisor.spawn("check of a shared resume token", self._leave(owned, fields["changed_s"]))
        else:
            self._evict(owned)

    async def _leave(self, owned: _Owned, changed_s: float) -> None:
        """The owner of a token has changed twice within `SHARED_S`: block the token, or close the older socket."""
        try:
            is_shared = await self._is_shared_after(changed_s, owned)
        except engine_errors.EngineError:
            is_shared = False
        if is_shared:
            self._hub.count("resume.token_shared")
            owned.page.lose_token()
        else:
            self._evict(owned)

    def _evict(self, owned: _Owned) -> None:
        self._hub.count("resume.evicted")
        self._hub.flush()  # the events published before reach a page that is still alive
        owned.page.evict(functools.partial(self._note_answer, owned.app, owned.token))

    def _note_answer(self, app: str, token: str) -> None:
        """Store that an older socket was alive when its token was taken.

        The record is deleted `LATE_SECONDS` after it expires, so one that is kept for `SHARED_S` has expired before it
        is written.
        """
        self._hub.engine.save_session(app, token + ANSWERED, b"1", SHARED_S - interface.LATE_SECONDS)

    async def _is_shared_after(self, changed_s: float | None, owned: _Owned) -> bool:
        """Whether several pages use a token whose owner has changed twice. `changed_s`: seconds between the changes.

        Raises EngineUnavailable.
        """
        if not _is_recent(changed_s):
            return False
        return await self._hub.engine.load_session(owned.app, owned.token + ANSWERED) is not None

    def _save_all(self) -> None:
        """Store the records again. After a gap the log may be a new one without them; then a page that reconnects would
        be treated as new, and its loss would not be reported."""
        for owned in list(self._owned.values()):
            try:
                owned.page.save()
            except Exception as error:  # noqa: BLE001  (of one page: the others are saved)
                _log.error("The record of a page could not be saved", error=error)


def _is_recent(changed_s: float | None) -> bool:
    return changed_s is not None and changed_s < SHARED_S
