"""Questions and publications of threads, with connections of redis-py."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TypeVar

import redis.exceptions

from fanfare.engine import errors, interface
from fanfare.engine.redis import address, entries, operations, scripts, sentinels

T = TypeVar("T")

LOCATED_S: Final = 1.0  # a publisher may write to a primary that was replaced for so long
PAGE: Final = 1_000  # channels of one answer


class Store:
    """The blocking side of an engine. The client is made at its first use, so it survives a fork that comes before."""

    def __init__(self, where: address.Address, partitions: int, timeout_s: float) -> None:
        self.address = where
        self.partitions = partitions
        self._timeout_s = timeout_s
        self._client: Any = None
        self._is_checked = False
        self._sentinels = sentinels.Sentinels(where) if where.form == "sentinel" else None
        self._primary: tuple[str, int] | None = None  # that the client uses
        self._located_s = float("-inf")  # monotonic

    @contextlib.contextmanager
    def client(self) -> Iterator[Any]:
        """Raises EngineUnavailable, inside the block too."""
        with address.reported():
            if not self._is_checked:
                self.check()
            client = self._connect()
            try:
                yield client
            except (redis.exceptions.ConnectionError, redis.exceptions.ReadOnlyError):
                self.forget()
                raise

    def _connect(self) -> Any:
        """The client, of another server after a failover."""
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
        """Compare the version of the keys and the number of partitions with those that the store has, and store them
        where it has none. Raises EngineMisconfigured, EngineUnavailable."""
        with address.reported():
            client = self._connect()
            key = f"{self.address.prefix}:{{{self.address.prefix}}}:meta"
            mine = {"version": scripts.VERSION, "partitions": self.partitions}
            for name, value in mine.items():
                client.hsetnx(key, name, value)
            version, partitions = (int(each) for each in client.hmget(key, list(mine)))
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

    def forget(self) -> None:
        """The primary may be another one: the next client asks Sentinel or the cluster. Other threads may use the
        present one still, so it is not closed here."""
        self._client = None

    def close(self) -> None:
        client, self._client = self._client, None
        self._is_checked = False
        if client is not None:
            with contextlib.suppress(redis.exceptions.RedisError, OSError):
                client.close()
        if self._sentinels is not None:
            self._sentinels.close()

    def run(self, client: Any, script: scripts.Script, partition: int, *arguments: Any) -> Any:
        """Run a script in a partition. The server says its run id itself: the pool may have gone to another one."""
        prefix = address.key_prefix(self.address.prefix, partition, self.partitions)
        keys = (prefix + "state", prefix + "absent")
        asked = (2, *keys, "" if script is scripts.PUBLISH else "-", address.random_name(16), *arguments)
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

    def _apply(self, partition: int, wanted: Sequence[operations.Operation]) -> Sequence[Any]:
        def apply(client: Any) -> Sequence[Any]:
            answer = self.run(client, scripts.PUBLISH, partition, "", entries.pack(wanted), entries.pack([]))
            results: Sequence[Any] = answer[2]
            return results

        return self.ask(apply, if_not_sent=True)

    def ask(self, question: Callable[[Any], T], *, if_not_sent: bool = False) -> T:
        """Run it with a client, and with another one if the first met a primary that is gone. `if_not_sent`: only where
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

    def partition(self, app: str, channel: str) -> int:
        return address.partition_of(app, channel, self.partitions)


class Queries(interface.Queries):
    """The questions, with one client."""

    def __init__(self, store: Store, client: Any) -> None:
        self._store = store
        self._client = client

    def _key(self, kind: str, app: str, channel: str) -> str:
        store = self._store
        prefix = address.key_prefix(store.address.prefix, store.partition(app, channel), store.partitions)
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

    def channel(self, app: str, channel: str) -> interface.ChannelCounts:
        counts = self._client.hvals(self._key("n", app, channel))
        return interface.ChannelCounts(sum(map(int, counts)), self._client.hlen(self._key("u", app, channel)))

    def members(self, app: str, channel: str) -> list[interface.Member]:
        users = self._client.zrange(self._key("o", app, channel), 0, -1)
        infos = self._client.hmget(self._key("i", app, channel), users) if users else []
        return [
            interface.Member(user.decode(), info.decode())
            for user, info in zip(users, infos, strict=True)
            if info is not None  # it left in between
        ]

    def present(self, app: str, channel: str, user_ids: Sequence[str]) -> set[str]:
        if not user_ids:
            return set()
        found = self._client.hmget(self._key("u", app, channel), list(user_ids))
        return {user for user, connections in zip(user_ids, found, strict=True) if connections is not None}

    def cached(self, app: str, channel: str) -> interface.Cached | None:
        key = self._key("c", app, channel)
        body, ttl_ms = self._client.get(key), self._client.pttl(key)
        return interface.Cached(body, math.ceil(ttl_ms / 1000)) if body and ttl_ms > 0 else None

    def read(
        self, app: str, channel: str, after: int, limit: int, *, before: int | None = None, newest_first: bool = False
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
        )
        if not found:
            return [], None
        epoch, top, parts = found
        return entries.read_all(parts), interface.Position(epoch.decode(), top)

    def session(self, app: str, token: str) -> bytes | None:
        partition = self._store.partition(app, f"#session-{token}")
        prefix = address.key_prefix(self._store.address.prefix, partition, self._store.partitions)
        record: bytes | None = self._client.hget(f"{prefix}s:{app}:{token}", "r")
        return record or None
