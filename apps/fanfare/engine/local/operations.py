"""What one group of the writer does inside its transaction: each operation is a small object with `run`.

An operation is made on any thread, run in the one that writes, and settled where its maker wants to hear of it.
It may run twice (a group that failed because of a neighbour is repeated), so `run` keeps its result in itself and
nowhere else.

The operations themselves are in `publishing`, `occupancy`, `presence` and `upkeep`.
"""

from __future__ import annotations

import abc
import sqlite3
import time
from asyncio import AbstractEventLoop
from collections.abc import Callable
from typing import Any

from fanfare.engine import errors
from fanfare.engine.local import schema, streams

# Told of an operation's end on its loop: (operation, None) after the commit, (operation, error) if its group failed.
Settled = Callable[[Any, errors.EngineError | None], None]


# For each parameter that is no exact str, int, float or bytearray Python's sqlite3 goes through the adapters, and up to
# 3.11 formats an error on the way: None, bytes and an IntEnum made a row cost 3.1 µs instead of 0.8.
_PLAIN = "INSERT INTO log VALUES (?, ?, ?, ?, NULL, NULL, NULL, ?, ?)"
_WHOLE = "INSERT INTO log VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"

_TOP_AND_CLEAN = f"SELECT {schema.TOP}, clean FROM state"  # noqa: S608


class Group:
    """One transaction: gives out ids and offsets, and collects the rows of the log so that they are written in one
    call."""

    def __init__(self, cursor: sqlite3.Cursor, top: int, worker: str | None) -> None:
        self.cursor = cursor
        self.top = top
        self.worker = worker  # whose members and counts are written; None in a process that is no worker
        self.now_ms = int(time.time() * 1000)
        self.weight = 0  # bytes of the bodies
        self.streams = streams.Streams(cursor, self.now_ms)
        self._plain: list[tuple[int, int, str, str, bytearray, int]] = []
        self._whole: list[tuple[int, int, str, str, int | None, str | None, str | None, bytearray, int]] = []

    def log(
        self,
        kind: int,
        app: str,
        channel: str,
        body: bytes,
        *,
        offset: int | None = None,
        user_id: str | None = None,
        exclude: str | None = None,
    ) -> int:
        self.top += 1
        self.weight += len(body)
        blob = bytearray(body)
        if offset is None and user_id is None and exclude is None:
            self._plain.append((self.top, int(kind), app, channel, blob, self.now_ms))
        else:
            self._whole.append((self.top, int(kind), app, channel, offset, user_id, exclude, blob, self.now_ms))
        return self.top

    @property
    def has_entries(self) -> bool:
        return bool(self._plain or self._whole)

    def finish(self) -> None:
        """Write what was collected; the commit is the caller's."""
        if self._plain:
            self.cursor.executemany(_PLAIN, self._plain)
        if self._whole:
            self.cursor.executemany(_WHOLE, self._whole)
        self.streams.finish()


def open_group(connection: sqlite3.Connection, worker: str | None) -> Group:
    """Start a transaction. The first write after a clean goodbye takes the goodbye back, on the disk, before anything
    else."""
    cursor = connection.cursor()
    cursor.execute("BEGIN IMMEDIATE")
    [(top, clean)] = cursor.execute(_TOP_AND_CLEAN).fetchall()
    if clean:
        cursor.execute("ROLLBACK")
        [(mode,)] = cursor.execute("PRAGMA synchronous").fetchall()
        cursor.execute("PRAGMA synchronous=FULL")
        with schema.transaction(connection):
            cursor.execute("UPDATE state SET clean = 0")
        cursor.execute(f"PRAGMA synchronous={mode}")
        cursor.execute("BEGIN IMMEDIATE")
        [(top, _)] = cursor.execute(_TOP_AND_CLEAN).fetchall()
    return Group(cursor, top, worker)


class Operation(abc.ABC):
    """`born` is the monotonic time of submission, for the time-out of what waits too long."""

    __slots__ = ("born",)

    loop: AbstractEventLoop | None = None  # where `settle` must be called; None: in the thread that wrote

    def __init__(self) -> None:
        self.born = time.monotonic()

    @abc.abstractmethod
    def run(self, group: Group) -> None: ...

    @abc.abstractmethod
    def settle(self, error: errors.EngineError | None) -> None:
        """Committed, or failed as a whole with `error`."""


class WorkerOperation(Operation):
    """What only a worker does; its end is told to `settled`, on the worker's loop."""

    __slots__ = ("loop", "settled")

    def __init__(self, loop: AbstractEventLoop, settled: Settled | None = None) -> None:
        super().__init__()
        self.loop = loop
        self.settled = settled

    def settle(self, error: errors.EngineError | None) -> None:
        if self.settled is not None:
            self.settled(self, error)
