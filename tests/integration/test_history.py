"""Channel history on four workers, with events published in every way."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.harness import calls, deployments, servers, waiting

Name = Callable[[str], str]


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
