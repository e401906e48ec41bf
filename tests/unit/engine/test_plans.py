"""The cost of an event, a join or a query grows with its answer: no statement of theirs reads a whole table."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from fanfare.engine import interface
from fanfare.engine.local import engine, paths, reader, schema
from tests.unit.engine.workers import APP, Worker

# Of one row, of a row for each worker, of a row for each consumer of the whole log.
SMALL = ("state", "workers", "cursors")
KEPT = interface.Retention(size=2, seconds=60)


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """All that is run on any connection to a log from now on."""
    run: list[str] = []
    connect = schema.connect

    def traced(*arguments: Any, **more: Any) -> sqlite3.Connection:
        connection = connect(*arguments, **more)
        connection.set_trace_callback(run.append)
        return connection

    monkeypatch.setattr(schema, "connect", traced)
    return run


async def test_no_event_join_or_query_reads_a_whole_table(tmp_path: Path, statements: list[str]) -> None:
    here = engine.LocalEngine(tmp_path, log_seconds=0.1)
    worker, other = await Worker(here).open(), await Worker(engine.LocalEngine(tmp_path, log_seconds=0.1)).open()
    begun = len(statements)
    await _publish(worker)
    await _join_and_leave(worker, other)
    await _ask(worker)
    await here.append([interface.Publication(APP, "c", b"")])
    await worker.until(lambda: any(one.startswith("DELETE FROM log") for one in statements), "the trim", within=30)
    consumer = await here.consume("consumer", 0, frozenset([interface.Kind.MEMBER_ADDED]))
    await consumer.next(10, 0)
    await consumer.keep(consumer.position + 1)
    await consumer.drop()
    await other.engine.close()
    await here.close()

    run = {one for one in statements[begun:] if one.startswith(("SELECT", "INSERT", "UPDATE", "DELETE"))}
    assert {one.split("(")[0].split()[0] for one in run} == {"SELECT", "INSERT", "UPDATE", "DELETE"}
    with contextlib.closing(schema.connect(paths.LogPaths(tmp_path))) as connection:
        reader.LocalSubscriptions().open(connection)
        scans = {one: detail for one in run for detail in _scans(connection, one)}
    assert scans == {}


async def test_scan_of_a_whole_table_is_found(tmp_path: Path) -> None:
    """The test above can fail."""
    here = await Worker(engine.LocalEngine(tmp_path)).open()
    with contextlib.closing(schema.connect(paths.LogPaths(tmp_path))) as connection:
        assert _scans(connection, "SELECT COUNT(DISTINCT user_id) FROM members WHERE info = '1'") == ["SCAN members"]
        assert _scans(connection, "SELECT top FROM (SELECT MAX(id) AS top FROM log WHERE kind = 1)") != []
    await here.engine.close()


def _scans(connection: sqlite3.Connection, statement: str) -> list[str]:
    plan = [detail for *_, detail in connection.execute(f"EXPLAIN QUERY PLAN {statement}").fetchall()]
    return [one for one in plan if one.startswith("SCAN") and one.split()[1] not in (*SMALL, "CONSTANT")]


async def _publish(worker: Worker) -> None:
    budget = interface.Budget(APP, 100)
    await worker.engine.append([interface.Publication(APP, "plain", b"{}")], budget=budget)
    for _ in range(20):
        await worker.publish("kept", b"1", b"2", retention=KEPT, cache_seconds=60, idempotency_key="key")
        await worker.publish("kept", b"3", retention=KEPT)


async def _join_and_leave(worker: Worker, other: Worker) -> None:
    here = worker.engine
    for count in (1, 200, 201, 1):
        here.set_subscribers(APP, "presence-c", count, announce=True)
        other.engine.set_subscribers(APP, "presence-c", count)
        here.set_subscribers(APP, interface.CONNECTIONS, count)
        await worker.join("presence-c", "ann", "1.1", member_limit=5, counted=True, cached=True)
    await other.join("presence-c", "ann", "1.2")
    await worker.join(interface.USERS, "ann", "1.1")
    await worker.attach("watched", watch=("ann", "bob"))
    await worker.attach("kept", history=interface.RecoveryRequest(rewind=interface.Rewind(5, 0)))
    top = (await worker.read("kept", 0, 1))[1]
    assert top is not None
    back = interface.Position(top.epoch, top.offset - 1)
    await worker.attach("kept", history=interface.RecoveryRequest(after=back))
    await worker.attach("never-kept", history=interface.RecoveryRequest())
    admitted: list[object] = []
    here.admit(APP, 5, admitted.append)
    await worker.until(lambda: admitted, "an answer")
    here.leave(APP, "presence-c", "1.1")
    here.set_subscribers(APP, "presence-c", 0)
    other.engine.set_subscribers(APP, "presence-c", 0)
    here.save_session(APP, "token", b"record", 60)
    assert (await here.take_session(APP, "token", "1.1")).record == b"record"
    here.save_session(APP, "token", b"record", 60, holder="1.1", release=True)


async def _ask(worker: Worker) -> None:
    here = worker.engine
    await worker.channels(APP)
    await worker.channels(APP, "presence-")
    await worker.channel("presence-c")
    await worker.members("presence-c")
    await worker.members("presence-c", 2)
    await worker.cached("kept")
    await worker.read("kept", 0, 10, newest_first=True, max_bytes=10)
    with here.queries() as queries:
        queries.present(APP, "presence-c", ["ann", "bob"])
