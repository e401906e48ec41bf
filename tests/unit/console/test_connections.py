"""The connections of all workers, on one real log."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from fanfare.console import connections
from fanfare.engine import interface
from fanfare.protocol.handshake import Client
from tests.harness import waiting
from tests.unit.console import workers
from tests.unit.hub import doubles

SEARCH: dict[str, Any] = {"text": "", "apps": None, "channel": "", "sort": "newest"}


class Worker(workers.Worker):
    def __init__(self, folder: Path, name: str) -> None:
        super().__init__(folder, name)
        self.connections = connections.Connections(self.hub, self.survey)

    async def found(self, **more: Any) -> list[dict[str, Any]]:
        answers = await self.survey.ask(connections.CONNECTIONS, SEARCH | more)
        assert answers.missing == 0
        return [one for answer in answers.workers.values() for one in answer["connections"]]


def client(address: str = "10.0.0.1", name: str = "js") -> Client:
    return Client(name, "8.6.0", "", address)


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[tuple[Worker, Worker]]:
    """Two workers that know each other."""
    one, two = Worker(tmp_path, "one"), Worker(tmp_path, "second")
    await one.start()
    await two.start()
    await workers.until_known(one, two)
    yield one, two
    await two.hub.stop()
    await one.hub.stop()


async def test_connections_of_all_workers_are_found(pair: tuple[Worker, Worker]) -> None:
    one, two = pair
    one.connect(context=client())
    two.connect(context=client("10.0.0.2", "swift"))
    assert {item["address"] for item in await one.found()} == {"10.0.0.1", "10.0.0.2"}
    [found] = await one.found(text="SWIFT")
    assert (found["client"], found["version"], found["socket"]) == ("swift", "8.6.0", "6.1")


async def test_search_is_bound_to_the_applications_of_the_user(pair: tuple[Worker, Worker]) -> None:
    one, _ = pair
    one.connect("1", context=client())
    one.connect("2", context=client())
    assert [item["app"] for item in await one.found(apps=["2"])] == ["2"]
    assert await one.found(apps=[]) == []


async def test_search_by_channel_and_by_presence_member(pair: tuple[Worker, Worker]) -> None:
    one, _ = pair
    connection = one.connect(context=client())
    one.connect(context=client())
    one.hub.subscribe(connection, "presence-room", member=interface.Member("ann", "null"))
    assert [item["socket"] for item in await one.found(channel="presence-room")] == [connection.socket_id]
    [found] = await one.found(text="ann")
    assert (found["users"], found["names"]) == (["ann"], ["presence-room"])


async def test_answer_is_bounded_and_says_how_many_match(pair: tuple[Worker, Worker]) -> None:
    one, _ = pair
    made = [one.connect(context=client()) for _ in range(connections.MOST + 30)]
    writer = made[3].writer
    assert isinstance(writer, doubles.FakeWriter)
    writer.waiting = 5_000
    answers = await one.survey.ask(connections.CONNECTIONS, SEARCH | {"sort": "buffered"})
    answer = answers.workers["one"]
    assert (len(answer["connections"]), answer["matching"]) == (connections.MOST, connections.MOST + 30)
    assert answer["connections"][0]["buffered"] == 5_000


@pytest.mark.parametrize(("returns", "code"), [(True, 4200), (False, 4009)])
async def test_disconnect_of_an_address_reaches_every_worker(
    pair: tuple[Worker, Worker], returns: bool, code: int
) -> None:
    one, two = pair
    here, there = one.connect(context=client()), two.connect(context=client())
    other_address = two.connect(context=client("10.0.0.9"))
    other_application = two.connect("2", context=client())
    await one.connections.disconnect("1", "address", "10.0.0.1", returns=returns)

    async def are_closed() -> bool:
        return here.closing and there.closing

    await waiting.until_async(are_closed, 5, "both connections are closed")
    for connection in (here, there):
        assert isinstance(connection.writer, doubles.FakeWriter)
        assert connection.writer.closed == (code, connections.MESSAGE)
    assert not other_address.closing
    assert not other_application.closing


async def test_disconnect_of_a_socket_and_of_a_user(pair: tuple[Worker, Worker]) -> None:
    one, _ = pair
    by_socket, by_user, other = (one.connect(context=client()) for _ in range(3))
    by_user.user_id = "ann"
    await one.connections.disconnect("1", "socket", by_socket.socket_id, returns=True)
    await one.connections.disconnect("1", "user", "ann", returns=True)

    async def are_closed() -> bool:
        return by_socket.closing and by_user.closing

    await waiting.until_async(are_closed, 5, "both connections are closed")
    assert not other.closing
