"""Channels that the worker has just begun to listen to: their latest entries are read from the log.

The server may append an entry of another process before it reads the SSUBSCRIBE, and sends no message for it then.
Until a channel has caught up, its messages are ignored, because the log has their entries too.
"""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from fanfare.engine import errors, interface
from fanfare.engine.redis import entries, operations
from fanfare.engine.redis.calls import CallQueue

LISTEN_ENTRIES: Final = 5_000  # of the log, in one answer
AGAIN_S: Final = 0.25  # after a read that failed


class Worker(Protocol):
    is_closed: bool
    counters: collections.Counter[str]

    def hand_over(self, batch: Sequence[interface.Entry]) -> None: ...


class Owner(Protocol):
    """The members of the partition that are used here."""

    calls: CallQueue

    @property
    def is_following(self) -> bool: ...
    def guarded(self, step: Callable[..., None], *arguments: Any) -> None: ...
    def name_of(self, entry: interface.Entry) -> str: ...
    def read(self, found: Sequence[bytes]) -> list[interface.Entry]: ...


class CatchUp:
    """By channel: the sequence after which it has not been read yet."""

    def __init__(self, partition: Owner, worker: Worker) -> None:
        self._partition = partition
        self._worker = worker
        self._since: dict[str, int] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._since

    def begin(self, name: str, since: int) -> None:
        self._since[name] = since
        self._read(name)

    def stop(self, name: str) -> None:
        self._since.pop(name, None)

    def clear(self) -> None:
        self._since.clear()

    # -- the repair of the partition reads these channels too ----------------------------------------------------------

    def earliest(self, position: int) -> int:
        """The sequence after which the partition and these channels need entries."""
        return min([position, *self._since.values()])

    def lacks(self, name: str, sequence: int) -> bool:
        return self._since.get(name, sequence) < sequence

    def repaired(self, last: int) -> None:
        """The log was read up to `last`."""
        self._since = {name: max(since, last) for name, since in self._since.items()}

    # -- reading the log -----------------------------------------------------------------------------------------------

    def _read(self, name: str) -> None:
        want = ("l", self._since[name], LISTEN_ENTRIES)

        def settled(answer: operations.Answer | None, error: errors.EngineError | None) -> None:
            since = self._since.get(name)
            if since is None or not self._partition.is_following:
                return  # repaired when the partition resumes
            if answer is None:
                self._read_later(name)
                return
            found = answer.found[want]
            read = self._partition.read(found)
            name_of = self._partition.name_of
            self._worker.hand_over([entry for entry in read if entry.id > since and name_of(entry) == name])
            if len(found) == LISTEN_ENTRIES:
                self._since[name] = entries.sequence(found[-1])
                self._read(name)
            else:
                del self._since[name]

        self._partition.calls.submit(operations.Call((), settled, wants=(want,)), urgent=True)

    def _read_later(self, name: str) -> None:
        self._worker.counters["listens_late"] += 1
        if not self._worker.is_closed:
            asyncio.get_running_loop().call_later(AGAIN_S, self._read_again, name)

    def _read_again(self, name: str) -> None:
        if name in self._since:
            self._partition.guarded(self._read, name)
