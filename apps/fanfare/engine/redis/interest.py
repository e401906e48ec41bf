"""The channels of the store that a partition subscribes to on its connection, and why each of them is wanted."""

from __future__ import annotations

from typing import Final, Generic, TypeVar

from fanfare.engine.redis.wire import Reply, Wire

P = TypeVar("P")

SUBSCRIBERS: Final = 1  # sockets of this worker are subscribed to it
LISTENER: Final = 2  # the worker itself reads it

Routes = dict[bytes, tuple[P, str]]


class Interest(Generic[P]):
    """Wanted channels are in `routes` at once; the server gets the changes with `write`. `refused`: gets the error if
    the server refuses a subscription."""

    def __init__(self, routes: Routes[P], partition: P, refused: Reply) -> None:
        self._routes = routes
        self._partition = partition
        self._refused = refused
        self._wanted: dict[str, int] = {}  # by channel: SUBSCRIBERS, LISTENER or both
        self._subscribed: set[str] = set()  # on the present connection
        self._changed: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._wanted

    def is_subscribed(self, name: str) -> bool:
        return name in self._subscribed

    def want(self, name: str, why: int, *, on: bool) -> None:
        before = self._wanted.get(name, 0)
        after = before | why if on else before & ~why
        if after:
            self._wanted[name] = after
            self._routes[name.encode()] = (self._partition, name)
        elif before:
            del self._wanted[name]
            del self._routes[name.encode()]
        if bool(before) is not bool(after):
            self._changed.add(name)

    def reconnected(self) -> None:
        """The next `write` subscribes to all wanted channels on a new connection."""
        self._subscribed.clear()
        self._changed = set(self._wanted)

    def write(self, wire: Wire) -> None:
        if not self._changed:
            return
        changed, self._changed = self._changed, set()
        came = [name for name in changed if name in self._wanted and name not in self._subscribed]
        went = [name for name in changed if name not in self._wanted and name in self._subscribed]
        if came:
            wire.subscribe(came, self._refused)
            self._subscribed.update(came)
        if went:
            wire.subscribe(went, self._refused, on=False)
            self._subscribed.difference_update(went)
