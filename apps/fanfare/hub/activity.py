"""The activity of a worker, for the console: its newest refusals always, all other items while a tail is open.

An item is a dict that becomes JSON: `at` (Unix time), `type`, and as far as known `app`, `channel`, `event`, `user`,
`socket`, `address`, `reason`, `code` and `text`. `tap` is called with each item. It is None while no tail is open, so
the hot paths only test for it.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import functools
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from fanfare.hub import connections

Item = dict[str, Any]
Tap = Callable[[Item], None]

REFUSALS_KEPT: Final = 200  # about 1 kB each
EVIDENCE_CHARACTERS: Final = 2_000  # of each text that a client sent

OPENED, CLOSED, SUBSCRIBED, UNSUBSCRIBED = "opened", "closed", "subscribed", "unsubscribed"
SIGNED_IN, REFUSAL, WEBHOOK = "signed in", "refusal", "webhook"


class Activity:
    """The activity of one hub. Its methods are called on the hub's loop."""

    def __init__(self, count: Callable[[str], None] = lambda _: None) -> None:
        self.count = count
        self.tap: Tap | None = None
        self.refusals: collections.deque[Item] = collections.deque(maxlen=REFUSALS_KEPT)

    def refused(
        self,
        what: str,
        reason: str,
        text: str,
        *,
        app: str = "",
        channel: str = "",
        address: str = "",
        connection: connections.Connection | None = None,
        evidence: Mapping[str, str] | None = None,
    ) -> None:
        """A client or a request was refused. `what`: a noun, such as "subscription". `text`: the sentence that the
        client's developer needs. `evidence`: what the client sent, for the auth doctor."""
        item: Item = {"at": time.time(), "type": REFUSAL, "what": what, "reason": reason, "text": text, "app": app}
        if connection is not None:
            item |= _of(connection)
        if channel:
            item["channel"] = channel
        if address:
            item["address"] = address
        if evidence:
            item["evidence"] = {name: value[:EVIDENCE_CHARACTERS] for name, value in evidence.items()}
        self.refusals.append(item)
        if self.tap is not None:
            self.tap(item)

    def seen(self, type_: str, connection: connections.Connection, **more: Any) -> None:
        """An item about a connection. Call it only while `tap` is set."""
        if self.tap is not None:
            self.tap({"at": time.time(), "type": type_, **_of(connection), **more})

    def noted(self, type_: str, app: str, **more: Any) -> None:
        """An item without a connection. Call it only while `tap` is set."""
        if self.tap is not None:
            self.tap({"at": time.time(), "type": type_, "app": app, **more})


# The activity of this process's worker and its event loop, for code in other threads. Empty in other processes.
_here: list[tuple[Activity, asyncio.AbstractEventLoop]] = []


def serve(activity: Activity | None) -> None:
    """Let `report` reach this worker's activity; None when the worker stops. Called on the worker's loop."""
    _here[:] = [] if activity is None else [(activity, asyncio.get_running_loop())]


def report(what: str, reason: str, text: str, **more: Any) -> None:
    """`Activity.refused` for Django code in any thread of a worker. Does nothing in a process without a worker."""
    for activity, loop in _here:
        with contextlib.suppress(RuntimeError):  # the loop was closed
            loop.call_soon_threadsafe(functools.partial(activity.refused, what, reason, text, **more))


def count(name: str) -> None:
    """`Hub.count` for Django code in any thread of a worker."""
    for activity, loop in _here:
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(activity.count, name)


def _of(connection: connections.Connection) -> Item:
    item: Item = {"app": connection.app, "socket": connection.socket_id}
    if connection.user_id is not None:
        item["user"] = connection.user_id
    address = getattr(connection.context, "address", "")
    if address:
        item["address"] = address
    client = f"{getattr(connection.context, 'name', '')} {getattr(connection.context, 'version', '')}".strip()
    if client:
        item["client"] = client
    return item
