"""A room: the subscribers of one channel of a server, and one publisher at a time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from tests.load import connections, errors, events, publishers, subjects, subscribers

PATIENCE_S = 20.0  # for events in flight; after that they count as lost


class Room:
    """Made by `opened`. Events are numbered from 1 in the order in which they are published."""

    def __init__(self, joined: subscribers.Subscribers) -> None:
        self.subscribers = joined
        self.published = 0

    @contextlib.contextmanager
    def publisher(self, way: subjects.Way) -> Iterator[publishers.Publisher]:
        one = way.open()
        self.subscribers.watch(one.watched())
        try:
            yield one
        finally:
            self.subscribers.watch({})
            one.close()

    @property
    def in_flight(self) -> int:
        """Published events minus the average of received events per subscriber."""
        return self.published - self.subscribers.deliveries // len(self.subscribers)

    def publish(self, publisher: publishers.Publisher, most: int) -> None:
        """Start to publish as many events as the publisher can at once, at most `most`."""
        if most > 0:
            self.published += publisher.publish(self.published + 1, most)

    def drain(self, patience_s: float = PATIENCE_S) -> None:
        """Read until all subscribers have all events. Raises Lost."""
        deadline = time.perf_counter() + patience_s
        while (missing := self.published * len(self.subscribers) - self.subscribers.deliveries) > 0:
            if time.perf_counter() > deadline:
                raise errors.Lost(f"{missing} deliveries are missing {patience_s:g} s after the last publication")
            self.subscribers.read(0.1)

    def verify(self) -> None:
        """Check that all subscribers received every event once, in one order. Raises Lost.

        The equality of all streams was checked on receipt; the numbers of the first one show that it is complete.
        """
        if self.subscribers.deliveries != self.published * len(self.subscribers):
            raise errors.Lost(f"{self.subscribers.deliveries} deliveries of {self.published} events")
        numbers = self.subscribers.layout.numbers(self.subscribers.reference)
        if sorted(numbers) != list(range(1, self.published + 1)):
            raise errors.Lost("the first subscriber did not receive every event exactly once")


@contextlib.contextmanager
def opened(running: subjects.Running, count: int) -> Iterator[Room]:
    """`count` subscribers that have received event 0, from which the layout of the server's frames is taken."""
    clients = connections.opened(running.port, running.target, running.joining, count)
    with contextlib.ExitStack() as stack:
        for one in clients:
            stack.callback(one.close)
        publisher = next(iter(running.ways().values())).open()
        stack.callback(publisher.close)
        publisher.publish(0, 1)
        payload = clients[0].receive()
        if any(one.receive() != payload for one in clients[1:]):
            raise errors.Lost(f"not every subscriber received {payload!r} as its first event")
        joined = subscribers.Subscribers(clients, events.layout(payload))
        stack.callback(joined.close)
        yield Room(joined)
