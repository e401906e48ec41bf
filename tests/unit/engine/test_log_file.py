"""A group of one publication is one statement, and falls back to a transaction where it must."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from fanfare.engine import interface
from fanfare.engine.local import appends, log_file, paths, schema
from fanfare.engine.local.transactions import WriteOp

EVENT = interface.Publication("1", "news", b"{}")


class Log:
    """A log, written as the commit queue does."""

    def __init__(self, folder: Path) -> None:
        self.paths = paths.LogPaths(folder)
        self.file = log_file.LogFile(self.paths, full_sync=False, max_bytes=10_000_000)
        self.write(EVENT)  # opens the log

    def write(self, publication: interface.Publication) -> interface.Receipt:
        operation = appends.BlockingAppend([publication])
        self.file.lock(tries=None)
        try:
            self.file.write([operation], fail)
        finally:
            self.file.unlock()
        assert self.file.committed
        [receipt] = operation.receipts
        return receipt

    def statements(self, publication: interface.Publication) -> list[str]:
        """The first words of what SQLite runs for a publication."""
        connection = self.file._connection
        assert connection is not None
        ran: list[str] = []
        connection.set_trace_callback(ran.append)
        self.write(publication)
        connection.set_trace_callback(None)
        return [statement.split()[0] for statement in ran]

    def read(self, query: str) -> list[tuple[object, ...]]:
        with contextlib.closing(schema.connect(self.paths)) as connection:
            return connection.execute(query).fetchall()


def fail(operation: WriteOp, error: Exception) -> None:
    raise AssertionError(operation) from error


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    log = Log(tmp_path / "engine")
    yield log
    log.file.close(last=False)


def test_lone_publication_is_one_statement(log: Log) -> None:
    assert log.statements(EVENT) == ["INSERT"]


def test_publication_with_a_retention_is_a_transaction(log: Log) -> None:
    kept = EVENT._replace(retention=interface.Retention(10, 60))
    assert log.statements(kept)[0] == "BEGIN"


def test_lone_publication_has_the_next_id_and_hands_its_row_over(log: Log) -> None:
    receipt = log.write(EVENT)
    assert receipt == interface.Receipt(None, False, 2)
    added = log.file.added
    assert added is not None
    assert (added.after, added.top) == (1, 2)
    assert log.read("SELECT id, kind, app, channel, body FROM log") == [
        (1, 0, "1", "news", b"{}"),
        (2, 0, "1", "news", b"{}"),
    ]


def test_id_of_a_lone_publication_follows_trimmed_entries(log: Log) -> None:
    with contextlib.closing(schema.connect(log.paths)) as connection:
        connection.execute("DELETE FROM log")
        connection.execute("UPDATE state SET trimmed_to = 40")
    assert log.write(EVENT).id == 41


def test_lone_publication_marks_a_closed_log_as_open(log: Log) -> None:
    with contextlib.closing(schema.connect(log.paths)) as connection:
        connection.execute("UPDATE state SET clean = 1")
    assert log.write(EVENT).id == 2
    assert log.read("SELECT clean FROM state") == [(0,)]


def test_lone_publication_in_a_log_without_state_is_refused(log: Log) -> None:
    with contextlib.closing(schema.connect(log.paths)) as connection:
        connection.execute("DELETE FROM state")
    with pytest.raises(sqlite3.DatabaseError, match="damaged"):
        log.write(EVENT)


def test_publication_after_a_replacement_is_written_to_the_new_log(log: Log, tmp_path: Path) -> None:
    log.paths.log.rename(tmp_path / "aside")
    other = Log(log.paths.folder)
    assert log.write(EVENT).id == 2
    assert log.file.reopened == 1
    assert log.read("SELECT COUNT(*) FROM log") == [(2,)]
    other.file.close(last=False)


def test_connection_to_a_log_whose_newest_id_is_no_integer_is_closed(
    log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.closing(schema.connect(log.paths)) as connection:
        connection.execute("PRAGMA writable_schema=ON")
        connection.execute("UPDATE sqlite_master SET sql = replace(sql, 'STRICT', '') WHERE name = 'state'")
    with contextlib.closing(schema.connect(log.paths)) as connection:
        connection.execute("UPDATE state SET trimmed_to = 1.5")
    opened: list[sqlite3.Connection] = []
    connect = schema.connect

    def noted(*arguments: object, **options: bool) -> sqlite3.Connection:
        opened.append(connect(*arguments, **options))  # type: ignore[arg-type]
        return opened[-1]

    monkeypatch.setattr(schema, "connect", noted)
    log.file.disconnect()
    assert log.write(EVENT).position is None
    assert list((tmp_path / "engine").glob("*damaged*")), "the log is moved aside"
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        opened[0].execute("SELECT 1")
