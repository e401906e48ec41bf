"""captured_events(): what code of a project publishes, without a server, a log or an application.

    with captured_events() as events:
        client.post("/orders/", {...})
    assert [(event.channel, event.name, event.data) for event in events] == [("orders", "created", {"id": 1})]

The transaction of a TestCase, or of pytest's `db`, never commits, so an event counts as sent when only transactions of
the test itself remain around it. Events of a transaction that is rolled back are not there. It makes no difference
which thread publishes: an async test runs its database calls in another one than itself.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Awaitable, Iterator, Sequence
from typing import Any, NamedTuple, cast, overload

import orjson
from asgiref.sync import sync_to_async

from fanfare.engine import current, interface
from fanfare.integration import after_commit, target, users
from fanfare.protocol import names, termination


class Event(NamedTuple):
    """An event that was published.

    `data`: as the page would have it after parsing the JSON; text that is not JSON is that text. `to_user`: the user's
    id, None for an event to a channel. The other fields are the arguments of `publish`; `app` is the application's id.
    """

    channel: str
    name: str
    data: Any
    to_user: str | None = None
    exclude: str | None = None
    idempotency_key: str | None = None
    app: str = target.IN_TESTS.id


class Events(Sequence[Event]):
    """The events since the block began, in order. It grows while the block runs and is complete after it."""

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
        """The ids of users whose connections `disconnect_user` closed."""
        return [
            orjson.loads(sent.body)["user_id"]
            for sent in self._log.sent()
            if sent.kind is interface.Kind.CONTROL and sent.channel == termination.COMMAND
        ]

    def on(self, channel: str) -> list[Event]:
        """Those of a channel."""
        return [event for event in self if event.channel == channel]

    def to(self, user: users.User) -> list[Event]:
        """Those to a user."""
        user_id = users.user_id(user)
        return [event for event in self if event.to_user == user_id]

    def _all(self) -> list[Event]:
        return [_event(sent) for sent in self._log.sent() if sent.kind is interface.Kind.EVENT]


@contextlib.contextmanager
def captured_events() -> Iterator[Events]:
    """Keep what this process publishes inside the block, in place of sending it. Yields `Events`.

    Members and histories are empty, and the database needs no application. Works in SimpleTestCase, TestCase and
    TransactionTestCase, in their `async def` methods, with pytest, and with a LiveServerTestCase, whose server is a
    thread of this process. Events of other processes are not there.
    """
    log = _Log()
    after_commit.observers.append(log.note)
    try:
        with current.replaced(cast("interface.Engine", log)), target.standing_in(target.IN_TESTS):
            try:
                yield Events(log)
            finally:
                log.settle()
    finally:
        after_commit.observers.remove(log.note)


class _Log(target.Sink):
    """The part of an engine that a process needs which is no worker. It keeps what it is given."""

    def __init__(self) -> None:
        self._sent: list[interface.Publication] = []
        self._keys: set[tuple[str, str, str]] = set()
        self._deferred: list[after_commit.Deferred] = []  # whatever waits for a commit, or has waited

    def append_blocking(
        self, publications: Sequence[interface.Publication], timeout: float | None = None
    ) -> list[interface.Receipt]:
        return [self._append(publication) for publication in publications]

    def append(
        self, publications: Sequence[interface.Publication], *, budget: interface.Budget | None = None
    ) -> Awaitable[list[interface.Receipt]]:
        return sync_to_async(self.append_blocking, thread_sensitive=False)(publications)

    def note(self, deferred: after_commit.Deferred) -> None:
        if cast("Any", deferred.engine) is self:
            self._deferred.append(deferred)

    def sent(self) -> list[interface.Publication]:
        waiting = [one for deferred in self._as_good_as_committed() for one in deferred.publications]
        return [*self._sent, *waiting]

    def settle(self) -> None:
        """Keep what is as good as committed, since the test rolls its own transaction back after the block."""
        for deferred in self._as_good_as_committed():
            connection = deferred.connection
            connection.run_on_commit = [one for one in connection.run_on_commit if one[1] is not deferred]
            self.append_blocking(deferred.publications)

    def _append(self, publication: interface.Publication) -> interface.Receipt:
        if publication.idempotency_key is not None:
            key = (publication.app, publication.channel, publication.idempotency_key)
            if key in self._keys:
                return interface.Receipt(None, duplicate=True)
            self._keys.add(key)
        self._sent.append(publication)
        return interface.Receipt(None, duplicate=False)

    def _as_good_as_committed(self) -> list[after_commit.Deferred]:
        """Those that wait for nothing but the test's own transactions, in order.

        Django's `captureOnCommitCallbacks(execute=True)` calls them and leaves them where they were.
        """
        return [
            deferred
            for deferred in self._deferred
            if not deferred.called
            and any(callback is deferred for _, callback, *_ in deferred.connection.run_on_commit)
            and all(getattr(block, "_from_testcase", False) for block in deferred.connection.atomic_blocks)
        ]


def _event(sent: interface.Publication) -> Event:
    from fanfare.integration import outbox

    frame = orjson.loads(sent.body)
    to_user = sent.channel.removeprefix(names.USER_PREFIX) if sent.channel.startswith(names.USER_PREFIX) else None
    key = None if outbox.is_own_key(sent.idempotency_key) else sent.idempotency_key
    return Event(sent.channel, frame["event"], _parsed(frame["data"]), to_user, sent.exclude, key, sent.app)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
