"""The messages of one channel that were not received yet."""

from __future__ import annotations

import asyncio
import collections
from typing import NamedTuple


class Pending(NamedTuple):
    """A message in a buffer. `deadline`: Unix seconds, after which it is dropped."""

    id: str
    deadline: float
    body: bytes


class ChannelBuffer:
    """At most `capacity` messages. Used on one event loop. The caller calls `expire` first."""

    __slots__ = ("_messages", "_reserved", "_waiting", "capacity")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._messages: dict[str, Pending] = {}
        # By id, until when: what this process has sent and not read back from the log yet.
        self._reserved: dict[str, float] = {}
        self._waiting: collections.deque[asyncio.Future[None]] = collections.deque()

    def __len__(self) -> int:
        return len(self._messages)

    @property
    def is_idle(self) -> bool:
        """Whether it holds no message and no reservation, and no receiver waits."""
        return not self._messages and not self._reserved and not self._waiting

    @property
    def has_receivers(self) -> bool:
        return bool(self._waiting)

    def expire(self, now: float) -> int:
        """Drop the messages over their deadline; how many."""
        for id_ in [id_ for id_, deadline in self._reserved.items() if deadline <= now]:
            del self._reserved[id_]
        old = [one.id for one in self._messages.values() if one.deadline <= now]
        for id_ in old:
            del self._messages[id_]
        return len(old)

    def reserve(self, id_: str, deadline: float) -> bool:
        """Take up the place of a message that is about to be sent. False: there is none."""
        if len(self._messages) + len(self._reserved) >= self.capacity:
            return False
        self._reserved[id_] = deadline
        return True

    def release(self, id_: str) -> None:
        """The message was not sent."""
        self._reserved.pop(id_, None)

    def put(self, message: Pending) -> bool:
        """False: the buffer is full, and the message is dropped."""
        self._reserved.pop(message.id, None)
        if message.id not in self._messages and len(self._messages) >= self.capacity:
            return False
        self._messages[message.id] = message
        self._wake()
        return True

    def remove(self, id_: str) -> None:
        """Another process has received the message."""
        self._messages.pop(id_, None)

    async def get(self) -> Pending:
        """The oldest message. If several receivers wait, each message goes to one of them."""
        while not self._messages:
            woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(woken)
            try:
                await woken
            except asyncio.CancelledError:
                if woken.done() and self._messages:
                    self._wake()  # it was meant for this receiver, which does not take it any more
                raise
            finally:
                if woken in self._waiting:
                    self._waiting.remove(woken)
        return self._messages.pop(next(iter(self._messages)))

    def _wake(self) -> None:
        while self._waiting:
            woken = self._waiting.popleft()
            if not woken.done():
                woken.set_result(None)
                return
