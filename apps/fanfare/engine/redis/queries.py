"""Queries and publications of threads, over connections of redis-py."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import json
import math
import operator
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TypeVar

import redis.exceptions

from fanfare.engine import errors, interface, moves
from fanfare.engine.redis import address, entries, operations, scripts, sentinels

T = TypeVar("T")

LOCATED_S: Final = 1.0  # after a failover, a publisher may write to the old primary for so long
PAGE: Final = 1_000  # channels or members of one answer
SEARCHED_NAMES: Final = 2_000  # in one call of a search: about 2 ms of the server


class Store:
    """The blocking side of an engine. The client is made at its first use, so an earlier fork does no harm."""

    def __init__(self, where: address.Address, partitions: int, timeout_s: float) -> None:
        self.address = where
        self.partitions = partitions
        self._timeout_s = timeout_s
        self._client: Any = None
        self._is_checked = False
        self._sentinels = sentinels.Sentinels(where) if where.form == "sentinel" else None
        self._primary: tuple[str, int] | None = None  # that the client uses
        self._located_s = float("-inf")  # monotonic
        self.is_moving = False  # it belongs to a move, which the mark does not refuse
        self.meta = f"{where.prefix}:{{{where.prefix}}}:meta"

    @contextlib.contextmanager
    def client(self) -> Iterator[Any]:
        """Raises EngineUnavailable, inside the block too."""
        with address.reported():
            if not self._is_checked:
                self.check()
            client = self._connect()
            try:
                yield client
            except (
                redis.exceptions.ConnectionError,
                redis.exceptions.ReadOnlyError,
                redis.exceptions.RedisClusterException,
            ):
                self.forget()
                raise
            except redis.exceptions.ResponseError as error:
                moved(error, self.address)
                raise

    def _connect(self) -> Any:
        """The client; after a failover a new one, for the new primary."""
        client = self._client
        if self._sentinels is not None and (client is None or time.monotonic() - self._located_s > LOCATED_S):
            primary = self._sentinels.primary()
            self._located_s = time.monotonic()
            if primary != self._primary:
                self._primary, client = primary, None
        if client is None:
            client = self._client = self.address.blocking(self._timeout_s, self._primary)
        return client

    def check(self) -> None:
        """Compare the version of the keys and the number of partitions with those in the store, and store them if it
        has none. Raises EngineMisconfigured, EngineUnavailable."""
        with address.reported():
            client = self._connect()
            self._refuse_if_moved(client)
            mine = {"version": scripts.VERSION, "partitions": self.partitions}
            for name, value in mine.items():
                client.hsetnx(self.meta, name, value)
            version, partitions = (int(each) for each in client.hmget(self.meta, list(mine)))
        if version != scripts.VERSION:
            raise errors.EngineMisconfigured(
                f"The keys in {self.address.public} have version {version}; this release of Fanfare reads version "
                f"{scripts.VERSION}. Install the release that wrote them, or name another prefix."
            )
        if partitions != self.partitions:
            raise errors.EngineMisconfigured(
                f"The log in {self.address.public} has {partitions} partitions, and FANFARE_REDIS_PARTITIONS is "
                f"{self.partitions}. Set it to {partitions}, or name another prefix."
            )
        self._is_checked = True

    def _refuse_if_moved(self, client: Any) -> None:
        mark = None if self.is_moving else client.hget(self.meta, "mark")
        if mark:
            moves.Mark.parse(mark).refuse_worker(self.address.public)

    def forget(self) -> None:
        """The primary may have changed: the next client asks Sentinel or the cluster. Other threads may still use the
        present client, so it is not closed here."""
        self._client = None

    def close(self) -> None:
        client, self._client = self._client, None
        self._is_checked = False
        if client is not None:
            with contextlib.suppress(*address.UNREACHABLE):
                client.close()
        if self._sentinels is not None:
            self._sentinels.close()

    def run(self, client: Any, script: scripts.Script, partition: int, *arguments: Any) -> Any:
        """Run a script in a partition. The server says its run id itself: the pool may have gone to another one."""
        prefix = self.prefix(partition)
        keys = (prefix + "state", prefix + "absent")
        asked = (2, *keys, "" if script in scripts.WRITING else "-", address.random_name(16), *arguments)
        try:
            return client.evalsha(script.sha, *asked)
        except redis.exceptions.NoScriptError:
            return client.eval(script.text, *asked)

    def append(
        self, publications: Sequence[interface.Publication], budget: interface.Budget | None = None
    ) -> list[interface.Receipt]:
        """Raises OverBudget, EngineUnavailable."""
        groups: dict[int, list[int]] = {}
        for index, publication in enumerate(publications):
            groups.setdefault(self.partition(publication.app, publication.channel), []).append(index)
        receipts: dict[int, interface.Receipt] = {}
        if budget is not None:
            asked = ("b", budget.app, budget.per_second, len(publications))
            [granted] = self._apply(self.partition(budget.app, interface.CONNECTIONS), [asked])
            if granted != 0:
                raise errors.OverBudget(*granted)
        for partition, indexes in groups.items():
            wanted = [operations.append(publications[index]) for index in indexes]
            for index, result in zip(indexes, self._apply(partition, wanted), strict=True):
                receipts[index] = operations.receipt(result)
        return [receipts[index] for index in range(len(publications))]

    def write_streams(self, writes: Sequence[interface.StreamWrite]) -> list[interface.StreamReceipt]:
        """Raises EngineUnavailable."""
        groups: dict[int, list[int]] = {}
        for index, write in enumerate(writes):
            groups.setdefault(self.partition(write.app, write.channel), []).append(index)
        receipts: dict[int, interface.StreamReceipt] = {}
        for partition, indexes in groups.items():
            bounded = {writes[index].app for index in indexes if writes[index].max_in_app is not None}
            others = {app: self._open_streams(app, partition) for app in bounded}
            wanted = [operations.stream_write(writes[index]) for index in indexes]
            results = self._write(scripts.WRITE_STREAMS, partition, entries.pack(wanted), entries.pack(others))
            for index, result in zip(indexes, results, strict=True):
                receipts[index] = operations.stream_receipt(result)
        return [receipts[index] for index in range(len(writes))]

    def _open_streams(self, app: str, partition: int) -> int:
        """The open streams of an application, in all partitions but one. Another process may open one meanwhile."""
        keys = [self.prefix(each) + "opened" for each in range(self.partitions) if each != partition]

        def ask(client: Any) -> int:
            with client.pipeline(transaction=False) as pipeline:
                for key in keys:
                    pipeline.hget(key, app)
                return sum(int(each or 0) for each in pipeline.execute())

        return self.ask(ask)

    def revise(self, revision: interface.Revision) -> interface.Position | None:
        """Raises EngineUnavailable."""
        app, channel, (epoch, offset), body, notice = revision
        wanted = entries.pack([app, channel, epoch, offset, body, notice])
        found: int = self._write(scripts.REVISE, self.partition(app, channel), wanted)
        return interface.Position(epoch, found) if found else None

    def update_member(self, app: str, channel: str, user_id: str, info: str) -> bool:
        """Raises EngineUnavailable."""
        wanted = entries.pack([app, channel, user_id, info])
        return bool(self._write(scripts.UPDATE_MEMBER, self.partition(app, channel), wanted))

    def lease_member(
        self, app: str, channel: str, user_id: str, info: str | None, seconds: float, *, limit: int | None
    ) -> bool | interface.Refused:
        """Raises EngineUnavailable."""
        fields = (app, channel, user_id, interface.lease_socket(user_id), info, int(seconds * 1000), limit)
        wanted = [False if field is None else field for field in fields]
        joined, *users = self._write(scripts.LEASE_MEMBER, self.partition(app, channel), entries.pack(wanted))
        if users:
            return interface.too_many_members(limit or 0, users[0])
        return bool(joined)

    def release_member(self, app: str, channel: str, user_id: str) -> bool:
        """Raises EngineUnavailable."""
        wanted = entries.pack([app, channel, interface.lease_socket(user_id)])
        return bool(self._write(scripts.RELEASE_MEMBER, self.partition(app, channel), wanted))

    def open_channel(self, app: str, channel: str) -> interface.Position:
        """Raises EngineUnavailable."""
        want = operations.history_want(app, channel, interface.RecoveryRequest())
        answer = self._write(scripts.APPLY, self.partition(app, channel), b"", entries.pack([]), entries.pack([want]))
        epoch, offset = answer[3][0][:2]
        return interface.Position(epoch.decode(), offset)

    def _write(self, script: scripts.Script, partition: int, *arguments: bytes) -> Any:
        return self.ask(lambda client: self.run(client, script, partition, *arguments), if_not_sent=True)

    def _apply(self, partition: int, wanted: Sequence[operations.Operation]) -> Sequence[Any]:
        results: Sequence[Any] = self._write(scripts.PUBLISH, partition, b"", entries.pack(wanted))[2]
        return results

    def ask(self, question: Callable[[Any], T], *, if_not_sent: bool = False) -> T:
        """Run `question` with a client, and again with a new one if the primary was replaced. `if_not_sent`: only if
        nothing can have been sent. Raises EngineUnavailable."""
        try:
            with self.client() as client:
                return question(client)
        except errors.EngineUnavailable as error:
            cause = error.__cause__
            if isinstance(cause, redis.exceptions.ReadOnlyError):
                if_not_sent = False  # a replica has refused it
            elif not isinstance(cause, redis.exceptions.ConnectionError):
                raise
            if if_not_sent and not isinstance(cause.__context__, ConnectionRefusedError):
                raise
        with self.client() as client:
            return question(client)

    def prefix(self, partition: int) -> str:
        return address.key_prefix(self.address.prefix, partition, self.partitions)

    def partition(self, app: str, channel: str) -> int:
        return address.partition_of(app, channel, self.partitions)


def moved(error: Exception, where: address.Address) -> None:
    """Raises EngineMoved or EngineUnavailable if a script refused because of a move."""
    code, _, rest = str(error).partition(" ")
    if code == "FANFARE_MOVED":
        mark, _ = json.JSONDecoder().raw_decode(rest)
        moves.Mark(**mark).refuse_write(where.public)


class Queries(interface.Queries):
    """The queries, with one client."""

    def __init__(self, store: Store, client: Any) -> None:
        self._store = store
        self._client = client

    def _key(self, kind: str, app: str, channel: str) -> str:
        prefix = self._store.prefix(self._store.partition(app, channel))
        return f"{prefix}{kind}:{operations.identity(app, channel)}"

    def channels(self, app: str, prefix: str = "") -> dict[str, interface.ChannelCounts]:
        found: dict[str, interface.ChannelCounts] = {}
        text = prefix.encode()
        for partition in range(self._store.partitions):
            first, last = (b"[" + text, b"[" + text + b"\xff") if text else (b"-", b"+")
            while True:
                page = self._store.run(self._client, scripts.CHANNELS, partition, app, first, last, PAGE)
                for index in range(0, len(page), 3):
                    found[page[index].decode()] = interface.ChannelCounts(page[index + 1], page[index + 2])
                if len(page) < 3 * PAGE:
                    break
                first = b"(" + page[-3]
        return found

    def search(self, app: str, text: str, after: str, limit: int) -> list[tuple[str, interface.ChannelCounts]]:
        found = heapq.merge(
            *(self._matches(partition, app, text, after, limit) for partition in range(self._store.partitions)),
            key=operator.itemgetter(0),
        )
        return [(name.decode(), counts) for name, counts in itertools.islice(found, limit)]

    def _matches(
        self, partition: int, app: str, text: str, after: str, limit: int
    ) -> Iterator[tuple[bytes, interface.ChannelCounts]]:
        """The matches of one partition, in the order of their bytes, read on demand."""
        first = b"(" + max(after, interface.LAST_INTERNAL).encode()
        while True:
            last, *page = self._store.run(
                self._client, scripts.SEARCH, partition, app, first, text, limit, SEARCHED_NAMES
            )
            for index in range(0, len(page), 3):
                yield page[index], interface.ChannelCounts(page[index + 1], page[index + 2])
            if not last:
                return
            first = b"(" + last

    def channel(self, app: str, channel: str) -> interface.ChannelCounts:
        counts = self._client.hvals(self._key("n", app, channel))
        return interface.ChannelCounts(sum(map(int, counts)), self._client.hlen(self._key("u", app, channel)))

    def members(self, app: str, channel: str, limit: int | None = None) -> list[interface.Member]:
        users = self._client.zrange(self._key("o", app, channel), 0, -1 if limit is None else limit - 1)
        infos, found = self._key("i", app, channel), list[interface.Member]()
        for begin in range(0, len(users), PAGE):
            some = users[begin : begin + PAGE]
            found += [
                interface.Member(user.decode(), info.decode())
                for user, info in zip(some, self._client.hmget(infos, some), strict=True)
                if info is not None  # it left in between
            ]
        return found

    def present(self, app: str, channel: str, user_ids: Sequence[str]) -> set[str]:
        if not user_ids:
            return set()
        found = self._client.hmget(self._key("u", app, channel), list(user_ids))
        return {user for user, connections in zip(user_ids, found, strict=True) if connections is not None}

    def cached(self, app: str, channel: str) -> interface.Cached | None:
        key = self._key("c", app, channel)
        body, ttl_ms = self._client.get(key), self._client.pttl(key)
        return interface.Cached(body, math.ceil(ttl_ms / 1000)) if body and ttl_ms > 0 else None

    def stream(self, app: str, channel: str, stream_id: str) -> interface.Streamed | None:
        return next(iter(self._streams(app, channel, stream_id)), None)

    def streams(self, app: str, channel: str) -> list[interface.Streamed]:
        return list(self._streams(app, channel, ""))

    def _streams(self, app: str, channel: str, stream_id: str) -> Sequence[interface.Streamed]:
        partition, name = self._store.partition(app, channel), operations.identity(app, channel)
        return operations.streams(self._store.run(self._client, scripts.STREAMS, partition, name, stream_id))

    def lapsed_streams(self, limit: int) -> list[interface.StreamName]:
        found: list[interface.StreamName] = []
        for partition in range(self._store.partitions):
            for name in self._store.run(self._client, scripts.LAPSED, partition, limit - len(found)):
                where, _, stream_id = name.decode().rpartition(" ")
                app, _, channel = where.partition(":")
                found.append(interface.StreamName(app, channel, stream_id))
            if len(found) >= limit:
                break
        return found

    def read(
        self,
        app: str,
        channel: str,
        after: int,
        limit: int,
        *,
        before: int | None = None,
        newest_first: bool = False,
        max_bytes: int | None = None,
    ) -> tuple[list[interface.Entry], interface.Position | None]:
        found = self._store.run(
            self._client,
            scripts.HISTORY,
            self._store.partition(app, channel),
            operations.identity(app, channel),
            after,
            before or 0,
            limit,
            int(newest_first),
            max_bytes or 0,
        )
        if not found:
            return [], None
        epoch, top, parts = found
        return entries.read_all(parts), interface.Position(epoch.decode(), top)

    def session(self, app: str, token: str) -> bytes | None:
        prefix = self._store.prefix(self._store.partition(app, f"#session-{token}"))
        record: bytes | None = self._client.hget(f"{prefix}s:{app}:{token}", "r")
        return record or None
