"""Channel history on four workers, with events published in every way."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from tests.harness import calls, deployments, event_streams, servers, sockets, waiting

Name = Callable[[str], str]

PATIENCE_S = 60.0


@pytest.fixture
def keeping(four_workers: servers.Server, name: Name) -> deployments.Application:
    """An application whose channels `kept-*` have a history."""
    return four_workers.deployment.create_application(name("keeping"), "--history", "kept-*=1000,600")


@pytest.fixture
def callers(four_workers: servers.Server, keeping: deployments.Application) -> Iterator[list[calls.Caller]]:
    """A connection to each worker; all workers know the application."""
    with calls.to_each_worker(four_workers) as found:
        callers = list(found.values())
        for caller in callers:
            caller.application = keeping
        waiting.until(
            lambda: all(caller.signed("GET", "channels").status == 200 for caller in callers),
            10.0,
            "all workers know the application",
        )
        yield callers


def read(caller: calls.Caller, channel: str, **query: str) -> calls.Answer:
    return caller.signed("GET", f"channels/{channel}/history", query=query)


def test_all_workers_return_one_complete_history_of_all_publishers(
    four_workers: servers.Server, keeping: deployments.Application, callers: list[calls.Caller], name: Name
) -> None:
    channel = f"kept-{name('orders')}"
    positions = [
        caller.publish(channel, "created", str(number), info="offset").body["channels"][channel]
        for number, caller in enumerate(callers, start=1)
    ]
    assert [position["offset"] for position in positions] == [1, 2, 3, 4]
    four_workers.deployment.shell(
        f"from fanfare import publish\npublish({channel!r}, 'created', '5', app={keeping.id!r})"
    )
    first, *others = [read(caller, channel, direction="forwards").body for caller in callers]
    assert [(item["offset"], item["data"]) for item in first["items"]] == [(n, str(n)) for n in range(1, 6)]
    assert first["position"] == f"{positions[0]['epoch']}:5"
    assert others == [first] * 3


def test_added_and_removed_rules_reach_every_worker(
    four_workers: servers.Server, keeping: deployments.Application, callers: list[calls.Caller], name: Name
) -> None:
    channel = name("later")
    row = f"Application.objects.get(app_id={keeping.id!r})"

    def statuses() -> set[int]:
        return {read(caller, channel).status for caller in callers}

    assert statuses() == {400}
    four_workers.deployment.shell(f"{row}.rules.create(pattern='*', position=9)")
    waiting.until(lambda: statuses() == {200}, 5.0, "the rule is known everywhere")
    four_workers.deployment.shell(f"{row}.rules.filter(pattern='*').delete()")
    waiting.until(lambda: statuses() == {400}, 5.0, "its end is known everywhere")


async def test_changed_message_reaches_a_client_of_the_plain_protocol_and_an_event_stream(
    four_workers: servers.Server, keeping: deployments.Application, callers: list[calls.Caller], name: Name
) -> None:
    """Both get an ordinary event, which a page that does not bind it ignores."""
    channel = f"kept-{name('chat')}"
    async with sockets.connect(four_workers, keeping) as socket:
        await socket.subscribe(channel)
        async with event_streams.listen(four_workers, keeping, channel) as stream:
            await stream.statement()
            published = callers[0].publish(channel, "message", "old", info="offset").body["channels"][channel]
            position = f"{published['epoch']}:{published['offset']}"
            route = f"channels/{channel}/history/{position}/revise"
            assert callers[1].signed("POST", route, {"data": "new", "by": "7"}).status == 200
            assert callers[2].signed("POST", route, {"delete": "1"}).status == 200
            seen = [(await stream.next(PATIENCE_S)).data for _ in range(3)]
        frames = [await socket.receive(PATIENCE_S) for _ in range(3)]
    for events in ([(one["event"], one["data"]) for one in seen], [(one.event, one.data) for one in frames]):
        assert [event for event, _ in events] == ["message", "fanfare:revised", "fanfare:deleted"]
        notices = [json.loads(data) for _, data in events[1:]]
        assert [(one["id"], one["event"], one.get("data")) for one in notices] == [
            (position, "message", "new"),
            (position, "message", None),
        ]
