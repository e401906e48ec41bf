"""Members with a time to live: an agent or a backend in a presence channel, without a connection.

    with presence.member("presence-room-7", "assistant", {"name": "Assistant"}) as assistant:
        ...
        assistant.update({"name": "Assistant", "status": "thinking"})

The member joins at the beginning of the block and leaves at its end. A thread renews its lease. If the process dies,
the member leaves when the lease expires.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from types import TracebackType
from typing import Any, Final

from asgiref.sync import sync_to_async

from fanfare import errors
from fanfare.applications import registry
from fanfare.engine import errors as engine_errors
from fanfare.engine import interface
from fanfare.integration import payloads, publishing, queries, target, users
from fanfare.protocol import names
from fanfare.runtime.log_throttle import LogThrottle

logger = logging.getLogger("fanfare.integration")
_log = LogThrottle(logger)

TTL_S: Final = 30.0
RENEWALS: Final = 3  # of a lease, within its time to live


class member:  # noqa: N801  (used like a function)
    """A user is a member of a presence channel in this block: `with` in a task, `async with` in a coroutine.

    `user`: as for `is_online`, also the id of an agent without an account. `info`: JSON, at most 2,048 bytes
    (`max_member_bytes`). `ttl`: the seconds after which the member leaves if this process dies, 3 or more. `app`: an
    application or its id, by default the project's default application.

    Raises InvalidName, InvalidUser, UnencodableData, DataTooLarge, TooManyMembers, NoApplication, EngineUnavailable.
    """

    def __init__(
        self, channel: str, user: users.User, info: Any = None, *, ttl: float = TTL_S, app: target.App = None
    ) -> None:
        if ttl < RENEWALS:
            raise ValueError(f"`ttl` is {ttl}; it is at least {RENEWALS} seconds.")
        self._arguments = (channel, user, info, ttl)
        self._app = app
        self._lease: Lease

    def __enter__(self) -> Lease:
        publishing.refuse_event_loop("with presence.member", "async with presence.member")
        self._lease = Lease(target.application(self._app), *self._arguments)
        self._lease.begin()
        return self._lease

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lease.end()

    async def __aenter__(self) -> Lease:
        application = await sync_to_async(target.application)(self._app)
        self._lease = Lease(application, *self._arguments)
        try:
            await sync_to_async(self._lease.begin, thread_sensitive=False)()
        except asyncio.CancelledError:
            # The thread of `begin` runs on, and no `__aexit__` follows.
            await sync_to_async(self._lease.end, thread_sensitive=False)()
            raise
        return self._lease

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await sync_to_async(self._lease.end, thread_sensitive=False)()


class Lease:
    """The member of a block."""

    def __init__(
        self, application: registry.Application, channel: str, user: users.User, info: Any, ttl: float
    ) -> None:
        queries.check_channel(channel, application.limits)
        if not names.is_presence(channel):
            raise errors.InvalidName(f"{channel!r} is not a presence channel, so it has no members.")
        self._application = application
        self._channel = channel
        self._user_id = users.user_id(user)
        self._ttl_s = ttl
        self._info = member_info(application, channel, info)
        self._engine = target.engine()
        self._lock = threading.Lock()  # no renewal follows the end
        self._ended = threading.Event()

    def update(self, info: Any) -> None:
        """Give the member a new info. Blocks. Raises UnencodableData, DataTooLarge, EngineUnavailable."""
        publishing.refuse_event_loop("update", "aupdate")
        self._update(info)

    async def aupdate(self, info: Any) -> None:
        """`update` for coroutines."""
        await sync_to_async(self._update, thread_sensitive=False)(info)

    def _update(self, info: Any) -> None:
        self._info = member_info(self._application, self._channel, info)
        self._renew()

    def begin(self) -> None:
        self._renew()
        threading.Thread(target=self._keep, name="fanfare-member", daemon=True).start()

    def end(self) -> None:
        with self._lock:
            self._ended.set()
            try:
                self._engine.release_member(self._application.id, self._channel, self._user_id)
            except engine_errors.EngineError as error:
                logger.warning(
                    "The member %s of %s could not be removed; its lease expires in %g s: %s",
                    self._user_id,
                    self._channel,
                    self._ttl_s,
                    error,
                )

    def _keep(self) -> None:
        while not self._ended.wait(self._ttl_s / RENEWALS):
            try:
                self._renew()
            except Exception as error:  # noqa: BLE001  (the next renewal may succeed)
                _log.warning("The member %s of %s could not be renewed: %s", self._user_id, self._channel, error)

    def _renew(self) -> None:
        with self._lock:
            if self._ended.is_set():
                return
            answer = self._engine.lease_member(
                self._application.id,
                self._channel,
                self._user_id,
                self._info,
                self._ttl_s,
                limit=self._application.limits.max_presence_members,
            )
        if isinstance(answer, interface.Refused):
            raise errors.TooManyMembers(self._channel, answer.actual or 0, answer.limit or 0)


def member_info(application: registry.Application, channel: str, info: Any) -> str:
    """JSON text. Raises UnencodableData, DataTooLarge."""
    try:
        text = payloads.json_text(info)
    except TypeError as error:
        raise errors.UnencodableData(f"The info of a member of {channel} has no JSON form: {error}.") from error
    size, limit = len(text.encode()), application.limits.max_member_bytes
    if size > limit:
        raise errors.DataTooLarge(f"the info of a member of {channel}", size, limit)
    return text
