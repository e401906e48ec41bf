"""The connection of a worker to one primary, and the partitions that it follows there."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Protocol

import hiredis

from fanfare.engine import errors
from fanfare.engine.redis import address, scripts, wire
from fanfare.engine.redis import partition as partitions
from fanfare.engine.redis.partition import Partition
from fanfare.runtime.backoff import Backoff

logger = logging.getLogger(__name__)

OLDEST_SERVER: Final = (7, 0)
LONGEST_PAUSE_S: Final = 2.0
SILENCE_S: Final = 2.0  # after a beat without an answer the connection is dropped

_FAILURES: Final = (OSError, TimeoutError, hiredis.ReplyError, errors.EngineError)


class Owner(partitions.Owner, Protocol):
    """The methods of the worker that a connection calls."""

    id: str
    memory: tuple[int, int]
    beat_arguments: tuple[int, int, int]

    def receive(self, messages: Sequence[tuple[bytes, bytes]]) -> None: ...
    def dropped(self, name: bytes) -> None: ...
    def beaten(self, partition: Partition, sent: float, reply: Any) -> None: ...


class Link:
    """`failure`: why there is no connection; None while there is one."""

    def __init__(self, worker: Owner, locate: Callable[[], Awaitable[tuple[str, int]]]) -> None:
        self.partitions: set[Partition] = set()
        self.failure: str | None = "The worker has not connected to Redis yet"
        self.wire: wire.Wire | None = None
        self.server: tuple[str, int] | None = None
        self.run_id = ""
        self._worker = worker
        self._locate = locate
        self._lost = asyncio.Event()
        self._beats: dict[Partition, float] = {}  # the times of beats without an answer

    # -- life ----------------------------------------------------------------------------------------------------------

    async def connect(self) -> None:
        """Raises EngineError, OSError, hiredis.ReplyError."""
        self._lost.clear()
        self.server = await self._locate()
        opened = await wire.connect(
            self._worker.address,
            self.server,
            f"fanfare-{self._worker.id}",
            lambda: wire.Wire(self._worker.receive, self._connection_lost, self._worker.dropped),
        )
        try:
            self.run_id = await self._check(opened, self._worker.address.path or "{}:{}".format(*self.server))
            for script in scripts.ALL:
                await opened.ask("SCRIPT", "LOAD", script.text)
            if self._worker.is_opening:
                await self._check_rights(opened)
            self._begin(opened)
        except TimeoutError as error:
            opened.abort()
            raise errors.EngineUnavailable("Redis does not answer") from error
        except BaseException:
            opened.abort()
            raise

    def _begin(self, opened: wire.Wire) -> None:
        if not opened.is_open:
            raise errors.EngineUnavailable("The connection to Redis was lost")
        self.wire = opened
        self._beats.clear()
        self._worker.counters["reconnects"] += 1
        for partition in self.partitions:
            partition.join(opened, self.run_id)

    async def run(self) -> None:
        """Connect, and reconnect whenever the connection is lost."""
        backoff = Backoff(first_s=0.05, longest_s=LONGEST_PAUSE_S)
        while True:
            if self.wire is not None:
                await self._lost.wait()
            try:
                await self.connect()
            except _FAILURES as error:
                self._failed(explain(error))
                self._worker.relocate()
                await asyncio.sleep(backoff.failed())
            else:
                if self.failure is not None and backoff.failures:
                    logger.info("Redis at %s answers again", self._worker.address.public)
                self.failure = None
                backoff.succeeded()

    def adopt(self, partition: Partition) -> None:
        """Follow a partition on this connection."""
        self.partitions.add(partition)
        if self.wire is not None and self.wire.is_open:
            partition.join(self.wire, self.run_id)

    def release(self, partition: Partition) -> None:
        self.partitions.discard(partition)
        self._beats.pop(partition, None)
        partition.leave_wire()

    def leave(self, why: str) -> None:
        """Drop the connection; `run` looks up the primary again."""
        if self.wire is not None:
            self._failed(why)
            self.wire.abort()

    def close(self) -> None:
        if self.wire is not None:
            self.wire.flush()
            self.wire.close()

    def _connection_lost(self, error: BaseException | None) -> None:
        if self.wire is None:
            return
        self.wire = None
        self._beats.clear()
        for partition in self.partitions:
            partition.leave_wire()
        self._failed("The connection to Redis was lost" + (f": {error}" if error else ""))
        self._lost.set()

    def _failed(self, why: str) -> None:
        if self.failure is None and not self._worker.is_closed:
            logger.error("%s (%s)", why, self._worker.address.public)
        self.failure = why

    # -- the beat ------------------------------------------------------------------------------------------------------

    def beat(self) -> None:
        """Once a second, for all partitions in one write."""
        if self.wire is None:
            return
        now = time.monotonic()
        for partition in self.partitions:
            if partition in self._beats or not partition.has_entered:
                continue
            self._beats[partition] = now
            seen = (partition.position, partition.generation, partition.beats)
            arguments = (partition.life, *self._worker.beat_arguments, *seen)
            partition.call(self._answer(partition, now), scripts.BEAT, *arguments)

    def look(self) -> None:
        """Drop a connection that does not answer."""
        if self._beats and self.wire is not None and time.monotonic() - min(self._beats.values()) > SILENCE_S:
            self._worker.counters["silences"] += 1
            self.leave(f"Redis has not answered the heartbeat for {SILENCE_S:.0f} s")

    def _answer(self, partition: Partition, sent: float) -> wire.Reply:
        def answered(reply: Any) -> None:
            if self._beats.pop(partition, None) is not None:
                self._worker.beaten(partition, sent, reply)

        return answered

    # -- checks --------------------------------------------------------------------------------------------------------

    async def _check(self, opened: wire.Wire, where: str) -> str:
        """Raises EngineMisconfigured with the remedy, EngineUnavailable. Returns the run id."""
        text = (await opened.ask("INFO")).decode(errors="replace")
        info: dict[str, str] = dict(re.findall(r"^(\w+):(.*?)\r?$", text, re.MULTILINE))
        version = tuple(int(each) for each in re.findall(r"\d+", info.get("redis_version", "0"))[:2])
        if version < OLDEST_SERVER:
            raise errors.EngineMisconfigured(
                f"{where} is Redis {info.get('redis_version')}: the engine needs Redis 7.0 or later, or Valkey."
            )
        if info.get("redis_mode") == "sentinel":
            raise errors.EngineMisconfigured(
                f"{where} is a sentinel: FANFARE_ENGINE=redis+sentinel://HOST:26379/SERVICE names sentinels."
            )
        if info.get("role") != "master":
            message = f"{where} is a replica: the engine needs the primary."
            if self._worker.is_opening and self._worker.address.form in ("single", "unix"):
                raise errors.EngineMisconfigured(message)
            raise errors.EngineUnavailable(message)
        if info.get("loading", "0") != "0":
            raise errors.EngineUnavailable(f"{where} is loading its data.")
        policy = info.get("maxmemory_policy", "noeviction")
        if policy != "noeviction":
            raise errors.EngineMisconfigured(
                f"{where} has maxmemory-policy {policy}, which would delete parts of the log: set it to noeviction."
            )
        if (info.get("cluster_enabled") == "1") is not (self._worker.address.form == "cluster"):
            raise errors.EngineMisconfigured(
                f"{where} is {'part' if info.get('cluster_enabled') == '1' else 'not part'} of a cluster: "
                "FANFARE_ENGINE=redis+cluster://… names the servers of a cluster, redis://… a server alone."
            )
        self._worker.memory = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
        return info["run_id"]

    async def _check_rights(self, opened: wire.Wire) -> None:
        """Raises EngineMisconfigured if the user lacks a right that the engine needs."""
        if not self.partitions:
            return
        key = next(iter(self.partitions)).prefix + "check"
        refused: list[Any] = []
        try:
            answer = await opened.ask("EVALSHA", scripts.CHECK.sha, 1, key)
            if answer != 1:
                refused.append(hiredis.ReplyError(f"NOPERM {answer.decode()}"))
            opened.subscribe([key], refused.append)
            await opened.ask("PING")
            opened.subscribe([key], refused.append, on=False)
        except hiredis.ReplyError as error:
            refused.append(error)
        if refused:
            raise errors.EngineMisconfigured(explain(refused[0]))


def explain(error: BaseException) -> str:
    """An error of the connection, as one sentence with the remedy."""
    text = address.describe(error)
    code = text.partition(" ")[0]
    if code in ("WRONGPASS", "NOAUTH"):
        return f"Redis refuses the user or password of FANFARE_ENGINE: {text}"
    if "NOPERM" in text:
        return (
            f"The Redis user of FANFARE_ENGINE lacks a right: {text}. The page “Serve from several machines” has the "
            "ACL rule."
        )
    if isinstance(error, errors.EngineError):
        return text
    return f"Redis cannot be reached: {text}"
