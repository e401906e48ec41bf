"""The read scheduler: output that waits until a client has read."""

from __future__ import annotations

import asyncio

import pytest

from fanfare.hub import hub as hubs
from fanfare.hub import pacing
from tests.unit.hub.doubles import Client


class Scheduler:
    def __init__(self) -> None:
        self.disconnected: list[object] = []
        self.failures: list[tuple[object, Exception]] = []
        self.called: list[str] = []
        self.pacing = pacing.Pacing(self.disconnected.append, lambda *failure: self.failures.append(failure))

    def add(self, client: Client, name: str) -> None:
        self.pacing.when_drained(client.connection, lambda: self.called.append(name))


@pytest.fixture
def scheduler() -> Scheduler:
    return Scheduler()


@pytest.fixture
def client(hub: hubs.Hub) -> Client:
    return Client(hub, "1.1")


async def turns() -> None:
    """More than the loop needs for all that is ready."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_callbacks_run_in_their_order_and_never_at_once(scheduler: Scheduler, client: Client) -> None:
    for name in ("one", "two", "three"):
        scheduler.add(client, name)
    assert scheduler.called == []
    await turns()
    assert scheduler.called == ["one", "two", "three"]


@pytest.mark.parametrize(("more", "is_behind"), [(0, False), (1, True)])
async def test_connection_is_behind_with_more_than_the_bytes_of_a_pace(
    scheduler: Scheduler, client: Client, more: int, is_behind: bool
) -> None:
    client.writer.waiting = pacing.PACE_BYTES + more
    assert pacing.is_behind(client.connection) is is_behind
    scheduler.add(client, "one")
    await turns()
    assert scheduler.called == ([] if is_behind else ["one"])
    scheduler.pacing.stop()


async def test_stopped_scheduler_calls_nothing_of_before(scheduler: Scheduler, client: Client) -> None:
    for name in ("before", "too"):
        scheduler.add(client, name)
    scheduler.pacing.stop()
    await turns()
    assert scheduler.called == []
    scheduler.add(client, "after")
    await turns()
    assert scheduler.called == ["after"]


async def test_callback_that_raises_is_reported_and_the_next_one_runs(scheduler: Scheduler, client: Client) -> None:
    error = ValueError("it cannot be written")

    def fail() -> None:
        raise error

    scheduler.pacing.when_drained(client.connection, fail)
    scheduler.add(client, "next")
    await turns()
    assert scheduler.failures == [(client.connection, error)]
    assert scheduler.called == ["next"]
