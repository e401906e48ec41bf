"""Results reach the database together, in order, and one that is refused does not stop the others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from django.db import DataError, OperationalError

from fanfare.runtime.backoff import Backoff
from fanfare.runtime.supervisor import Supervisor
from fanfare.webhooks import result_writer

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
async def writer(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[result_writer.ResultWriter]:
    monkeypatch.setattr(result_writer, "Backoff", lambda: Backoff(0.01, 0.01))
    made, tasks = result_writer.ResultWriter(), Supervisor()
    tasks.run("writer", made.run, backoff=Backoff(0.01, 0.01))
    yield made
    await tasks.stop()


def raising(error: Exception) -> Callable[[], None]:
    def write() -> None:
        raise error

    return write


async def test_results_are_written_in_order(writer: result_writer.ResultWriter) -> None:
    written: list[int] = []
    await asyncio.gather(*(writer.write(lambda number=number: written.append(number)) for number in range(20)))
    assert written == list(range(20))


@pytest.mark.parametrize("error", [DataError("invalid byte sequence"), ValueError("NUL"), ZeroDivisionError()])
async def test_refused_result_fails_alone(writer: result_writer.ResultWriter, error: Exception) -> None:
    written: list[str] = []
    results = await asyncio.gather(
        writer.write(lambda: written.append("a")),
        writer.write(lambda: written.append("b"), raising(error)),
        writer.write(lambda: written.append("c")),
        return_exceptions=True,
    )
    assert [results[0], results[2]] == [None, None]
    assert results[1] is error
    # Those of the group that was rolled back are written again.
    assert written[-3:] == ["a", "b", "c"]
    await asyncio.wait_for(writer.write(lambda: written.append("later")), 20)


async def test_database_that_is_away_is_waited_for(
    writer: result_writer.ResultWriter, caplog: pytest.LogCaptureFixture
) -> None:
    attempts: list[int] = []

    def write() -> None:
        attempts.append(1)
        if len(attempts) < 4:
            raise OperationalError("server closed the connection\nunexpectedly")

    await asyncio.wait_for(writer.write(write), 20)
    assert len(attempts) == 4
    assert caplog.text.count("Results of webhooks cannot be written (server closed the connection)") == 1


async def test_result_of_a_cancelled_request_does_not_stop_the_writer(writer: result_writer.ResultWriter) -> None:
    gate = asyncio.Event()
    waiting = Supervisor()
    waiting.spawn("request", writer.write(gate.set))
    await asyncio.sleep(0)
    await waiting.stop()
    await asyncio.wait_for(writer.write(lambda: None), 20)
