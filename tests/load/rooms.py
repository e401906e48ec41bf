"""A room: the subscribers of one channel of one subject, and one publisher at a time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from tests.load import connections, errors, events, publishers, subjects, subscribers

PATIENCE_S = 20.0  # for events that are under way: what is later than this is missing


class Room:
    """Made by `opened`. Events are numbered from 1, in the order in which publishing them began."""

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
    def under_way(self) -> int:
        """Events that were begun and that not everybody has. It counts deliveries: stragglers share the difference."""
        return self.published - self.subscribers.deliveries // len(self.subscribers)

    def publish(self, publisher: publishers.Publisher, most: int) -> None:
        """Begin to publish as many as the publisher can at once, `most` at most."""
        if most > 0:
            self.published += publisher.publish(self.published + 1, most)

    def drain(self, patience_s: float = PATIENCE_S) -> None:
        """Read until everybody has everything. Raises Lost."""
        deadline = time.perf_counter() + patience_s
        while (missing := self.published * len(self.subscribers) - self.subscribers.deliveries) > 0:
            if time.perf_counter() > deadline:
                raise errors.Lost(f"{missing} deliveries are missing {patience_s:g} s after the last publication")
            self.subscribers.read(0.1)

    def verify(self) -> None:
        """Everybody got every event once, all in one order. Raises Lost.

        That all got the same was checked while it came; that it was everything, the first one's numbers say.
        """
        if self.subscribers.deliveries != self.published * len(self.subscribers):
            raise errors.Lost(f"{self.subscribers.deliveries} deliveries of {self.published} events")
        numbers = self.subscribers.layout.numbers(self.subscribers.reference)
        if sorted(numbers) != list(range(1, self.published + 1)):
            raise errors.Lost("The first subscriber did not get every event exactly once")


@contextlib.contextmanager
def opened(running: subjects.Running, count: int) -> Iterator[Room]:
    """`count` subscribers; event 0 was published and read by all: it tells what this server's frames look like."""
    clients = connections.opened(running.port, running.target, running.joining, count)
    with contextlib.ExitStack() as stack:
        for one in clients:
            stack.callback(one.close)
        publisher = next(iter(running.ways().values())).open()
        stack.callback(publisher.close)
        publisher.publish(0, 1)
        payload = clients[0].receive()
        if any(one.receive() != payload for one in clients[1:]):
            raise errors.Lost(f"Not every subscriber got {payload!r} as the first event")
        joined = subscribers.Subscribers(clients, events.layout(payload))
        stack.callback(joined.close)
        yield Room(joined)
