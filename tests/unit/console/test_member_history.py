"""The members of a presence channel at each kept event, on a real log."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fanfare.applications import registry, rules
from fanfare.console import member_history, permissions, requests
from fanfare.console.endpoints import time_travel
from fanfare.engine import interface
from fanfare.hub import connections
from tests.harness import waiting
from tests.unit.console.workers import Worker

CHANNEL = "presence-room"
RULE = rules.Rule("presence-*", 100, 600, record_members=True)
SHOP = registry.Application("1", "key", "secret", name="Shop", rules=rules.Rules((RULE,)))
ANN = permissions.Access("1", "ann", {"view_console": None})


def joined(entry: int, user: str) -> member_history.Change:
    return member_history.Change(entry, user, joined=True)


def left(entry: int, user: str) -> member_history.Change:
    return member_history.Change(entry, user, joined=False)


def recorded(
    members: set[str], *changes: member_history.Change, start: int = 0, is_whole: bool = False
) -> member_history.Recorded:
    return member_history.Recorded(members, changes, start, 1.0, is_whole)


def test_members_at_an_event_are_those_of_now_without_the_later_changes() -> None:
    changes = [left(9, "ann"), joined(6, "bob"), joined(3, "ann"), joined(1, "eve")]
    assert member_history.at([2, 4, 7, 10], recorded({"bob", "eve"}, *changes)) == {
        10: ["bob", "eve"],
        7: ["ann", "bob", "eve"],
        4: ["ann", "eve"],
        2: ["eve"],
    }


def test_members_before_the_oldest_kept_change_are_unknown() -> None:
    assert member_history.at([2, 4], recorded({"ann"}, joined(3, "ann"))) == {4: ["ann"]}
    assert member_history.at([2, 4], recorded({"ann"})) == {}


def test_members_before_the_start_of_the_recording_are_unknown() -> None:
    assert member_history.at([2, 4, 6], recorded({"ann"}, start=4, is_whole=True)) == {4: ["ann"], 6: ["ann"]}
    assert member_history.at([2, 4], member_history.Recorded({"ann"})) == {}


@pytest.mark.parametrize("changes", [[joined(5, "eve"), joined(1, "ann")], [left(5, "ann"), joined(1, "ann")]])
def test_members_before_a_missing_change_are_unknown(changes: list[member_history.Change]) -> None:
    assert member_history.at([4, 6], recorded({"ann"}, *changes)) == {6: ["ann"]}


def test_recording_has_begun_where_the_rules_last_changed_for_the_channel() -> None:
    def start(entry: int, *patterns: list[object], log: str = "a") -> member_history.Start:
        return member_history.Start(log, entry, {"1": list(patterns)})

    kept, other, off = ["presence-*", 9, 60], ["news", 0, 0], ["presence-*", 0, 0]

    def since(*markers: member_history.Start) -> int | None:
        found, _ = member_history._start(markers, "1", CHANNEL)
        return None if found is None else found.entry

    assert since(start(9, other, kept), start(5, kept), start(1, off)) == 5
    assert since(start(9, off), start(5, kept)) is None
    assert since(start(9, kept), start(5, off, kept), start(1, kept)) == 9
    assert since(start(9, kept), start(5, ["presence-*", 8, 60])) == 9
    assert since(start(9, kept, log="b"), start(5, kept)) == 9
    assert since() is None


class Recorded(Worker):
    """A worker whose presence channels are recorded."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.registry = registry.Registry()
        self.registry.put(SHOP)

    @contextlib.asynccontextmanager
    async def recording(self) -> AsyncIterator[None]:
        history = member_history.MemberHistory(self.hub, self.registry, lambda: True)
        history.answer(self.survey)
        task = asyncio.create_task(history.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def join(self, user: str) -> connections.Connection:
        connection = self.connect()
        self.hub.subscribe(connection, CHANNEL, member=interface.Member(user, "null"))
        await self.until(lambda: user in self.members())
        return connection

    async def leave(self, connection: connections.Connection, user: str) -> None:
        self.hub.unsubscribe(connection, CHANNEL)
        await self.until(lambda: user not in self.members())

    async def say(self) -> None:
        kept = interface.Retention(100, 600)
        await self.hub.engine.append(
            [interface.Publication("1", CHANNEL, b'{"event":"e","data":"{}"}', retention=kept)]
        )

    def members(self) -> set[str]:
        with self.hub.engine.queries() as queries:
            return member_history.members_now(queries, "1", CHANNEL)

    def changes(self) -> list[tuple[str, bool]]:
        """The oldest first."""
        with self.hub.engine.queries() as queries:
            members = member_history.members_now(queries, "1", CHANNEL)
            changes = member_history.read(queries, "1", CHANNEL, 0, members).changes
            return [(one.user, one.joined) for one in reversed(changes)]

    def marked(self) -> member_history.Start:
        with self.hub.engine.queries() as queries:
            return member_history.starts(queries, 0, 1)[0]

    async def timeline(self) -> Any:
        server = SimpleNamespace(hub=self.hub, registry=self.registry, survey=self.survey)
        return await time_travel.timeline(requests.Request(server, ANN, {"app": "1", "channel": CHANNEL}, {}))

    @staticmethod
    async def until(is_so: Any) -> None:
        async def reached() -> bool:
            return bool(is_so())

        await waiting.until_async(reached, 30, "the members, or their changes")


@pytest.fixture
async def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Recorded]:
    monkeypatch.setattr(member_history, "LOOK_S", 0.02)
    made = Recorded(tmp_path / "engine")
    await made.start()
    yield made
    await made.hub.stop()


async def consumed(worker: Recorded) -> None:
    """Wait until the job reads the log: a new consumer begins at the newest entry."""
    probe = await worker.join("probe")
    attempts = 0
    while not worker.changes():
        attempts += 1
        assert attempts < 1_000
        await worker.leave(probe, "probe")
        probe = await worker.join("probe")
    await worker.leave(probe, "probe")
    await worker.leave(await worker.join("last"), "last")
    await worker.until(lambda: worker.changes()[-1] == ("last", False))


async def test_timeline_has_the_members_at_each_event(worker: Recorded) -> None:
    async with worker.recording():
        await consumed(worker)
        ann = await worker.join("ann")
        await worker.say()
        await worker.join("bob")
        await worker.say()
        await worker.leave(ann, "ann")
        await worker.say()
        answer = await worker.timeline()
    assert (answer["records_members"], answer["members_behind"]) == (True, False)
    assert [one["members"] for one in answer["events"]] == [["ann"], ["ann", "bob"], ["bob"]]
    assert [one["member_count"] for one in answer["events"]] == [1, 2, 1]


async def test_members_are_unknown_while_no_worker_records(worker: Recorded) -> None:
    async with worker.recording():
        await consumed(worker)
        ann = await worker.join("ann")
        await worker.say()
        assert (await worker.timeline())["events"][0]["members"] == ["ann"]
    await worker.leave(ann, "ann")
    answer = await worker.timeline()
    assert answer["members_behind"]
    assert "members" not in answer["events"][0]


async def test_members_are_unknown_while_the_recording_is_behind(
    worker: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(member_history, "PATIENCE_S", member_history.NOTICE_S + 0.05)
    append, is_open = worker.hub.engine.append, asyncio.Event()
    is_open.set()

    async def slow(publications: Any, *more: Any) -> Any:
        if publications[0].channel.startswith(member_history.PREFIX):
            await is_open.wait()
        return await append(publications, *more)

    monkeypatch.setattr(worker.hub.engine, "append", slow)
    async with worker.recording():
        await consumed(worker)
        ann = await worker.join("ann")
        await worker.say()
        is_open.clear()
        await worker.leave(ann, "ann")
        answer = await worker.timeline()
        assert answer["members_behind"]
        assert "members" not in answer["events"][0]
        is_open.set()
        assert (await worker.timeline())["events"][0]["members"] == ["ann"]


def test_changes_after_the_members_were_read_are_not_undone() -> None:
    changes = [left(9, "ann"), joined(8, "bob"), joined(6, "ann"), joined(3, "eve")]
    for members, later in [({"bob", "eve"}, 0), ({"ann", "bob", "eve"}, 1), ({"ann", "eve"}, 2), ({"eve"}, 3)]:
        assert member_history._later_than(members, changes) == later
    assert member_history._later_than({"ann", "dan"}, changes) == 0  # eve's leave is missing
    assert member_history._later_than({"dan"}, []) == 0


async def test_members_are_unknown_before_the_last_start_of_the_recording(worker: Recorded) -> None:
    async with worker.recording():
        await consumed(worker)
        await worker.say()
        worker.registry.put(dataclasses.replace(SHOP, rules=rules.Rules()))
        await worker.until(lambda: worker.marked().rules == {})
        await worker.join("bob")
        worker.registry.put(SHOP)
        await worker.until(lambda: worker.marked().rules != {})
        await worker.say()
        await worker.join("eve")
        await worker.until(lambda: worker.changes() == [("eve", True)])
        await worker.say()
        answer = await worker.timeline()
    assert [one.get("members") for one in answer["events"]] == [None, ["bob"], ["bob", "eve"]]
    assert answer["events"][0]["at"] <= answer["members_since"] <= answer["events"][1]["at"]


async def test_next_worker_continues_without_a_gap_or_a_repetition(worker: Recorded) -> None:
    async with worker.recording():
        await consumed(worker)
    before = worker.changes()
    await worker.join("ann")
    async with worker.recording():
        await worker.until(lambda: worker.changes()[-1] == ("ann", True))
    assert worker.changes() == [*before, ("ann", True)]


async def test_channel_without_the_rule_is_not_recorded(worker: Recorded) -> None:
    quiet = rules.Rule(CHANNEL, 100, 600)
    worker.registry.put(dataclasses.replace(SHOP, rules=rules.Rules((quiet, RULE))))
    history = member_history.MemberHistory(worker.hub, worker.registry, lambda: True)
    entry = interface.Entry(1, interface.Kind.MEMBER_ADDED, "1", CHANNEL, None, "ann", None, b"null", 1)
    assert history._change(entry) is None
    assert history._change(entry._replace(channel="presence-other")) is not None


async def test_channel_of_more_members_than_are_shown_has_none_of_them(
    worker: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(member_history, "MOST_MEMBERS", 1)
    await worker.join("ann")
    await worker.join("bob")
    assert worker.changes() == []
