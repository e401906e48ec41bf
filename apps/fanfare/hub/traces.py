"""Traces of events in this worker: the publisher, the times at which an event was read and written, and the sockets.

An event is named by its entry in the log, `PARTITION:ID`. A sample of all events is always recorded, up to five a
second, and every event of a traced channel. The time at which an event was stored chooses the sample, so that workers
with the same channels record the same events. The records of all workers together show the path of an event through
the deployment (`fanfare.console.endpoints.tracing`).

Cost: one comparison of times for a read that is not sampled. A recorded event costs some 10 µs.
"""

from __future__ import annotations

import collections
import itertools
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import orjson

from fanfare.engine import interface
from fanfare.hub import connections

Record = dict[str, Any]
Key = tuple[int, int]  # partition, id of the entry

RECORDS_KEPT: Final = 1_000  # of each kind; about 1 kB each, so at most 2 MB of a worker
SAMPLE_MS: Final = 200  # one event of each such interval is recorded
SOCKETS_SHOWN: Final = 100  # of an event in a traced channel
SET_BACK_MS: Final = 10_000  # the clocks of the partitions' stores differ by less
REPLAYS_KEPT: Final = 50  # of one event

# The publisher of an entry, as the process that published it knows it: see `published`.
Publisher = Mapping[str, Any]


def position(partition: int, entry_id: int) -> str:
    """The position of an entry in all partitions of the log, for messages and pages."""
    return f"{partition}:{entry_id}"


def parse(text: str) -> Key:
    """Read `PARTITION:ID`. Raises ValueError."""
    partition, colon, entry_id = text.strip().partition(":")
    if not colon or not (partition.isascii() and partition.isdigit() and entry_id.isascii() and entry_id.isdigit()):
        raise ValueError("The position of an event is PARTITION:ID, two whole numbers such as 0:4711")
    if len(partition) > 9 or len(entry_id) > 20:
        raise ValueError("The position of an event has at most 9 and 20 digits")
    return int(partition), int(entry_id)


class Recorder:
    """The recorder of one hub. `published` may be called in any thread, everything else on the hub's loop."""

    def __init__(self, engine: interface.Engine) -> None:
        self.engine = engine
        self._deliveries: collections.OrderedDict[Key, Record] = collections.OrderedDict()
        self._publishers: collections.OrderedDict[Key, Record] = collections.OrderedDict()
        self._lock = threading.Lock()  # of the publishers
        self._traced: dict[tuple[str, str], float] = {}  # the end of the trace, monotonic, by application and channel
        self._sampled_ms = -SAMPLE_MS  # when the newest interval began that has an event in the sample, Unix time
        self._publications = Sampler()
        # With OpenTelemetry: called in the publisher's thread, and every event is recorded.
        self.on_published: Callable[[Sequence[Key], Record], None] | None = None

    # -- what is recorded ----------------------------------------------------------------------------------------------

    def trace(self, app: str, channel: str, seconds: float) -> None:
        """Record every event of this channel for `seconds`."""
        now = time.monotonic()
        self._traced = {key: until for key, until in self._traced.items() if until > now}
        self._traced[app, channel] = max(now + seconds, self._traced.get((app, channel), 0.0))

    def is_traced(self, app: str, channel: str) -> bool:
        until = self._traced.get((app, channel)) if self._traced else None
        return until is not None and until > time.monotonic()

    def is_due(self, newest: interface.Entry) -> bool:
        """Whether something of this read may be recorded. Called once for each read."""
        return self._is_new_interval(newest) or bool(self._traced) or self.on_published is not None

    def _is_new_interval(self, entry: interface.Entry) -> bool:
        """Whether no event of the entry's interval is in the sample yet. Partitions are read with small differences.
        After a clock was set back, sampling starts again."""
        return not -SET_BACK_MS < entry.created_ms - self._sampled_ms < SAMPLE_MS

    # -- the publisher's side ------------------------------------------------------------------------------------------

    def wants(self, app: str, channel: str) -> bool:
        """Whether the publisher of this event is recorded."""
        if self.on_published is not None or self.is_traced(app, channel):
            return True
        return self._publications.wants()

    def published(
        self,
        publications: Sequence[interface.Publication],
        receipts: Sequence[interface.Receipt],
        publisher: Publisher,
        began: float,
    ) -> None:
        """These publications are in the log. `began`: Unix time of the call."""
        found = published(self.engine.partition, publications, receipts, publisher, began)
        self._keep(found)
        if self.on_published is not None and found:
            self.on_published([key for key, _ in found], found[0][1])

    def announced(self, _app: str, body: bytes) -> None:
        """A process without a worker published these events, see `announcement`."""
        self._keep([((partition, entry_id), record) for (partition, entry_id), record in orjson.loads(body)])

    def _keep(self, found: Iterable[tuple[Key, Record]]) -> None:
        with self._lock:
            self._publishers.update(found)
            while len(self._publishers) > RECORDS_KEPT:
                self._publishers.popitem(last=False)

    # -- deliveries ----------------------------------------------------------------------------------------------------

    def begin(
        self,
        channel: connections.Channel,
        entries: Sequence[interface.Entry],
        by_socket: Mapping[str, Any],
        read: float,
    ) -> list[Record]:
        """Returns the records of the sampled and traced entries, before the entries are written. `read`: Unix time."""
        traced = self.is_traced(channel.app, channel.name)
        chosen = entries
        if not traced and self.on_published is None:
            new = (entry for entry in entries if entry.kind in _EVENTS and self._is_new_interval(entry))
            chosen = list(itertools.islice(new, 1))
            if not chosen:
                return []
            self._sampled_ms = chosen[0].created_ms // SAMPLE_MS * SAMPLE_MS
        now = time.time()
        found = []
        for entry in chosen:
            if entry.kind not in _EVENTS:
                continue
            excluded = by_socket.get(entry.exclude) if entry.exclude is not None else None
            is_excluded = excluded is not None and channel.name in excluded.subscriptions
            record: Record = {
                "app": entry.app,
                "channel": entry.channel,
                "created": entry.created_ms / 1000,
                "read": read,
                "first_write": now,
                "joined": len(entries),
                "written": len(channel.live) + len(channel.live_with_offsets) - is_excluded,
                "excluded": entry.exclude if is_excluded else None,
                "catching_up": len(channel.catching_up) if entry.offset is not None else 0,
                "waiting": channel.attaching,
            }
            if entry.kind == interface.Kind.CLIENT_EVENT and entry.exclude is not None:
                record["client"] = {"socket": entry.exclude} | ({"user": entry.user_id} if entry.user_id else {})
            if traced:
                record["sockets"] = [
                    _socket(connection)
                    for connection in itertools.islice(
                        itertools.chain(channel.live, channel.live_with_offsets), SOCKETS_SHOWN + is_excluded
                    )
                    if connection is not excluded
                ]
            key = (self.engine.partition(entry.app, entry.channel), entry.id)
            self._deliveries[key] = record
            found.append(record)
        while len(self._deliveries) > RECORDS_KEPT:
            self._deliveries.popitem(last=False)
        return found

    def end(
        self, records: Sequence[Record], channel: connections.Channel, slow: Iterable[connections.Connection]
    ) -> None:
        """The entries were written. `slow`: the connections that are disconnected as too slow."""
        closed = [connection.socket_id for connection in slow]
        behind = channel.live.values() if channel.is_cache else ()
        held = [one.connection.socket_id for one in behind if one.pending is not None]
        for record in records:
            skipped = [one for one in closed if one != record["excluded"]]
            record["last_write"] = time.time()
            record["slow"] = skipped[:SOCKETS_SHOWN]
            conflated = [one for one in held if one != record["excluded"]]
            record["conflated"] = len(conflated)
            record["conflated_sockets"] = conflated[:SOCKETS_SHOWN]
            record["written"] -= len(skipped) + len(conflated)

    def replayed(
        self, connection: connections.Connection, channel: connections.Channel, entries: Sequence[interface.Entry]
    ) -> None:
        """A recovery sent these kept entries."""
        partition = self.engine.partition(channel.app, channel.name)
        traced = self.is_traced(channel.app, channel.name)
        for entry in entries:
            record = self._deliveries.get((partition, entry.id))
            if record is None:
                if not traced:
                    continue
                record = self._deliveries[partition, entry.id] = {
                    "app": entry.app, "channel": entry.channel, "created": entry.created_ms / 1000,
                }  # fmt: skip
            replays = record.setdefault("replays", [])
            if len(replays) < REPLAYS_KEPT:
                replays.append({"at": time.time(), **_socket(connection)})
        while len(self._deliveries) > RECORDS_KEPT:
            self._deliveries.popitem(last=False)

    # -- answers -------------------------------------------------------------------------------------------------------

    def record(self, key: Key) -> Record:
        """This worker's records of an event: `delivery`, `publication`; empty if there are none."""
        found: Record = {}
        delivery = self._deliveries.get(key)
        if delivery is not None:
            found["delivery"] = delivery
        with self._lock:
            publication = self._publishers.get(key)
        if publication is not None:
            found["publication"] = publication
        return found

    def recent(self, limit: int, app: str | None = None, channel: str | None = None) -> list[Record]:
        """The newest recorded events, with their positions, the newest first."""
        found = []
        for (partition, entry_id), record in reversed(self._deliveries.items()):
            if (app is None or record["app"] == app) and (channel is None or record["channel"] == channel):
                found.append({"entry": position(partition, entry_id), **record})
                if len(found) == limit:
                    break
        return found


def published(
    partition: Callable[[str, str], int],
    publications: Sequence[interface.Publication],
    receipts: Sequence[interface.Receipt],
    publisher: Publisher,
    began: float,
) -> list[tuple[Key, Record]]:
    """The records of publications that are in the log. `began`: Unix time of the call."""
    same = {**_publishing(publisher, began), "committed": time.time()}
    return [
        (
            (partition(publication.app, publication.channel), receipt.id),
            {**same, "app": publication.app, "channel": publication.channel},
        )
        for publication, receipt in zip(publications, receipts, strict=True)
        if receipt.id
    ]


def publishing(publication: interface.Publication, publisher: Publisher, began: float) -> Record:
    """The record of a publication by this process, which is not in the log yet. `began`: Unix time of the call."""
    return {**_publishing(publisher, began), "app": publication.app, "channel": publication.channel}


def _publishing(publisher: Publisher, began: float) -> Record:
    return {"node": socket.gethostname(), "pid": os.getpid(), "publisher": publisher, "began": began}


class Sampler:
    """Chooses one publication of a process every SAMPLE_MS. May be called in any thread."""

    def __init__(self) -> None:
        self._at = 0.0  # monotonic

    def wants(self) -> bool:
        now = time.monotonic()
        if now < self._at:
            return False
        self._at = now + SAMPLE_MS / 1000
        return True


def announcement(found: Sequence[tuple[Key, Record]]) -> interface.Publication:
    """The command that gives all workers the newest of these records."""
    return interface.Publication(
        "", interface.PUBLISHERS, orjson.dumps(found[-interface.ANNOUNCED_EVENTS :]), interface.Kind.CONTROL
    )


_EVENTS: Final = frozenset([interface.Kind.EVENT.value, interface.Kind.CLIENT_EVENT.value])


def _socket(connection: connections.Connection) -> dict[str, Any]:
    shown: dict[str, Any] = {"socket": connection.socket_id, "buffered": connection.writer.buffered()}
    if connection.user_id is not None:
        shown["user"] = connection.user_id
    return shown


# The recorder of this process's worker, for code that publishes in other threads; None in a process without a worker.
here: Recorder | None = None
