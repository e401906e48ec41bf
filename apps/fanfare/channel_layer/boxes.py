"""A box: what came for one channel and was not received yet."""

from __future__ import annotations

import asyncio
import collections
from typing import NamedTuple


class Item(NamedTuple):
    id: str
    deadline: float  # Unix seconds; after it the message is dropped
    body: bytes


class Box:
    """At most `capacity` items. Used on one event loop. The caller calls `expire` first."""

    __slots__ = ("_coming", "_items", "_waiting", "capacity")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._items: dict[str, Item] = {}
        # By id, until when: what this process has sent here and not read back from the log yet.
        self._coming: dict[str, float] = {}
        self._waiting: collections.deque[asyncio.Future[None]] = collections.deque()

    def __len__(self) -> int:
        return len(self._items)

    @property
    def is_idle(self) -> bool:
        """Nothing is in it, comes to it or is waited for."""
        return not self._items and not self._coming and not self._waiting

    @property
    def is_awaited(self) -> bool:
        return bool(self._waiting)

    def expire(self, now: float) -> int:
        """Drop what is too old; how many items."""
        for id_ in [id_ for id_, deadline in self._coming.items() if deadline <= now]:
            del self._coming[id_]
        old = [item.id for item in self._items.values() if item.deadline <= now]
        for id_ in old:
            del self._items[id_]
        return len(old)

    def reserve(self, id_: str, deadline: float) -> bool:
        """Count a message in that is about to be sent. False: there is no room for it."""
        if len(self._items) + len(self._coming) >= self.capacity:
            return False
        self._coming[id_] = deadline
        return True

    def release(self, id_: str) -> None:
        """It was not sent after all."""
        self._coming.pop(id_, None)

    def put(self, item: Item) -> bool:
        """False: it is full, and the item is dropped."""
        self._coming.pop(item.id, None)
        if len(self._items) >= self.capacity:
            return False
        self._items[item.id] = item
        self._wake()
        return True

    def remove(self, id_: str) -> None:
        """Another process has received it."""
        self._items.pop(id_, None)

    async def get(self) -> Item:
        """The oldest item. If several wait, each item goes to one of them."""
        while not self._items:
            woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(woken)
            try:
                await woken
            except asyncio.CancelledError:
                if woken.done() and self._items:
                    self._wake()  # it was meant for this one, which does not want it any more
                raise
            finally:
                if woken in self._waiting:
                    self._waiting.remove(woken)
        return self._items.pop(next(iter(self._items)))

    def _wake(self) -> None:
        while self._waiting:
            woken = self._waiting.popleft()
            if not woken.done():
                woken.set_result(None)
                return
