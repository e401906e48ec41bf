"""For the tests of a project: what would have been sent, without a server, a log or an application.

    with captured_events() as events:
        client.post("/orders/", {...})
    assert [(event.channel, event.name, event.data) for event in events] == [("orders", "created", {"id": 1})]

It works in Django's TestCase and with pytest's `db`, whose transactions never commit: an event counts as sent when the
test's own transaction is the only one left around it. What was rolled back is not there.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Awaitable, Iterator, Sequence
from typing import Any, NamedTuple, cast, overload

import orjson
from asgiref.sync import sync_to_async
from django.db import connections

from fanfare.applications import registry
from fanfare.engine import current, interface
from fanfare.integration import application, outbox, publishing, users
from fanfare.protocol import names, termination

STAND_IN = registry.Application(id="1", key="test", secret="test", name="Test")  # noqa: S106  no secret at all


class Event(NamedTuple):
    """`data`: what was published, as a page would have it after parsing the JSON; text that is no JSON is that text.
    `to_user`: the user's id, where the event is for a user."""

    channel: str
    name: str
    data: Any
    to_user: str | None = None
    exclude: str | None = None
    idempotency_key: str | None = None
    app: str = STAND_IN.id


class Events(Sequence[Event]):
    """What was sent since the block began, in order; it grows while the block runs."""

    def __init__(self, log: _Log) -> None:
        self._log = log

    @overload
    def __getitem__(self, index: int) -> Event: ...

    @overload
    def __getitem__(self, index: slice) -> list[Event]: ...

    def __getitem__(self, index: int | slice) -> Event | list[Event]:
        return self._all()[index]

    def __len__(self) -> int:
        return len(self._all())

    def __repr__(self) -> str:
        return f"Events({self._all()!r})"

    @property
    def names(self) -> list[str]:
        return [event.name for event in self]

    @property
    def disconnected(self) -> list[str]:
        """The ids of users whose connections were ended."""
        return [
            orjson.loads(sent.body)["user_id"]
            for sent in self._log.sent()
            if sent.kind is interface.Kind.CONTROL and sent.channel == termination.COMMAND
        ]

    def on(self, channel: str) -> list[Event]:
        return [event for event in self if event.channel == channel]

    def to(self, user: users.User) -> list[Event]:
        user_id = users.user_id(user)
        return [event for event in self if event.to_user == user_id]

    def _all(self) -> list[Event]:
        return [_event(sent) for sent in self._log.sent() if sent.kind is interface.Kind.EVENT]


@contextlib.contextmanager
def captured_events() -> Iterator[Events]:
    """Keep what this process publishes inside the block, in place of sending it.

    Nobody is online, and no channel has a past. An application need not exist.
    """
    log = _Log()
    with current.replaced(cast("interface.Engine", log)), application.standing_in(STAND_IN):
        try:
            yield Events(log)
        finally:
            log.settle()


class _Log:
    """As much of an engine as a process needs that is no worker."""

    def __init__(self) -> None:
        self._sent: list[interface.Publication] = []
        self._keys: set[tuple[str, str, str]] = set()
        self._earlier = [deferred for _, deferred in _deferred()]  # of code before the block

    def append_blocking(
        self, publications: Sequence[interface.Publication], timeout: float | None = None
    ) -> list[interface.Receipt]:
        return [self._append(publication) for publication in publications]

    def append(
        self, publications: Sequence[interface.Publication], *, budget: interface.Budget | None = None
    ) -> Awaitable[list[interface.Receipt]]:
        return sync_to_async(self.append_blocking, thread_sensitive=False)(publications)

    @contextlib.contextmanager
    def questions(self) -> Iterator[interface.Queries]:
        yield _Nobody()

    def sent(self) -> list[interface.Publication]:
        waiting = [one for _, deferred in self._as_good_as_committed() for one in deferred.publications]
        return [*self._sent, *waiting]

    def settle(self) -> None:
        """The test's own transaction is rolled back after the block: what is as good as committed is kept now."""
        for connection, deferred in self._as_good_as_committed():
            connection.run_on_commit = [one for one in connection.run_on_commit if one[1] is not deferred]
            self.append_blocking(deferred.publications)

    def _append(self, publication: interface.Publication) -> interface.Receipt:
        if publication.idempotency_key is not None:
            key = (publication.app, publication.channel, publication.idempotency_key)
            if key in self._keys:
                return interface.Receipt(0, None, duplicate=True)
            self._keys.add(key)
        self._sent.append(publication)
        return interface.Receipt(len(self._sent), None, duplicate=False)

    def _as_good_as_committed(self) -> list[tuple[Any, publishing.Deferred]]:
        return [
            (connection, deferred)
            for connection, deferred in _deferred()
            if deferred not in self._earlier
            and not deferred.called  # by the test itself: Django's captureOnCommitCallbacks leaves it where it was
            and all(block._from_testcase for block in connection.atomic_blocks)
        ]


class _Nobody(interface.Queries):
    """The answers of a deployment without a worker."""

    def channels(self, app: str, prefix: str = "") -> dict[str, interface.ChannelCounts]:
        return {}

    def channel(self, app: str, channel: str) -> interface.ChannelCounts:
        return interface.ChannelCounts(0, 0)

    def members(self, app: str, channel: str) -> list[interface.Member]:
        return []

    def present(self, app: str, channel: str, user_ids: Sequence[str]) -> set[str]:
        return set()

    def read(
        self, app: str, channel: str, after: int, limit: int, *, before: int | None = None, newest_first: bool = False
    ) -> tuple[list[interface.Entry], interface.Position | None]:
        return [], None


def _deferred() -> list[tuple[Any, publishing.Deferred]]:
    """What waits for a commit in this thread, with its connection."""
    return [
        (connection, callback)
        for connection in connections.all(initialized_only=True)
        for _, callback, *_ in connection.run_on_commit
        if isinstance(callback, publishing.Deferred)
    ]


def _event(sent: interface.Publication) -> Event:
    frame = orjson.loads(sent.body)
    to_user = sent.channel.removeprefix(names.USER_PREFIX) if sent.channel.startswith(names.USER_PREFIX) else None
    key = None if outbox.is_own_key(sent.idempotency_key) else sent.idempotency_key
    return Event(sent.channel, frame["event"], _parsed(frame["data"]), to_user, sent.exclude, key, sent.app)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
