"""The joins and leaves of presence channels, kept where the channel rule has `record_members`, for time travel.

One worker of the deployment reads them from the log and appends them to the channel `#members-CHANNEL`, which has the
rule's retention. Nothing subscribes to it. The members at an event are today's members with the later changes undone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

import orjson

from fanfare.applications import registry
from fanfare.engine import errors as engine_errors
from fanfare.engine import interface
from fanfare.hub import hub as hubs
from fanfare.jobs import declarations, log_consumer
from fanfare.runtime import supervisor

logger = logging.getLogger(__name__)

NAME: Final = "member history"  # of the job and of its consumer
PREFIX: Final = "#members-"
KINDS: Final = frozenset([interface.Kind.MEMBER_ADDED, interface.Kind.MEMBER_REMOVED])
LOOK_S: Final = 1.0  # the delay until the first rule that records, or the removal of the last one, is noticed
MOST_CHANGES: Final = 2_000  # of one answer
MOST_MEMBERS: Final = 1_000
MEMBERS_SHOWN: Final = 100  # at each event


class Change(NamedTuple):
    """A member joined or left. `entry`: the id of the log's entry, in the partition of the channel."""

    entry: int
    user: str
    joined: bool


class MemberHistory:
    """The job. `loaded`: whether the registry was loaded; before that, an empty registry means nothing."""

    def __init__(self, hub: hubs.Hub, applications: registry.Registry, loaded: Callable[[], bool]) -> None:
        self._hub = hub
        self._registry = applications
        self._loaded = loaded
        self._tasks: supervisor.Supervisor | None = None

    def job(self) -> declarations.Job:
        return declarations.Job(NAME, self.run, "deployment", parts=lambda: self.statuses)

    @property
    def statuses(self) -> Sequence[supervisor.Status]:
        return () if self._tasks is None else self._tasks.statuses

    async def run(self) -> None:
        """Record until it is cancelled."""
        self._tasks = supervisor.Supervisor(logger, count=self._hub.count)
        log_consumer.run_partitions(
            self._tasks,
            "members of the log",
            self._hub.engine.partitions,
            self._consume,
            (engine_errors.EngineUnavailable,),
        )
        try:
            await asyncio.Event().wait()
        finally:
            await self._tasks.stop()

    async def _consume(self, partition: int) -> None:
        is_dropped = False  # a stored position of an earlier run
        while True:
            if self._is_wanted() or (self._loaded() and not is_dropped):
                await self._record(partition)
                is_dropped = True
            await asyncio.sleep(LOOK_S)

    async def _record(self, partition: int) -> None:
        """Record while a rule wants it; then the log keeps nothing for this consumer."""
        engine = self._hub.engine
        async with log_consumer.LogConsumer(engine, NAME, KINDS, partition=partition) as consumer:
            while self._is_wanted():
                entries = await consumer.next(LOOK_S)
                found = [change for entry in entries if (change := self._change(entry)) is not None]
                if found:
                    await engine.append(found)
                await consumer.keep(at_once=bool(found))
            await consumer.drop()

    def _is_wanted(self) -> bool:
        return any(rule.record_members for application in self._registry.all() for rule in application.rules)

    def _change(self, entry: interface.Entry) -> interface.Publication | None:
        """The key makes an entry that is read twice, after the death of a worker, one change."""
        application = self._registry.by_id(entry.app)
        rule = None if application is None else application.rules.of(entry.channel)
        if rule is None or not rule.record_members or entry.user_id is None:
            return None
        change = Change(entry.id, entry.user_id, entry.kind == interface.Kind.MEMBER_ADDED)
        return interface.Publication(
            entry.app,
            PREFIX + entry.channel,
            orjson.dumps(list(change)),
            retention=rule.retention,
            idempotency_key=f"{entry.id}-{entry.created_ms}",
        )


def read(queries: interface.Queries, app: str, channel: str) -> tuple[set[str], list[Change]]:
    """The members of a channel now, and its kept changes, the newest first; without changes if there are more members
    than MOST_MEMBERS. Raises EngineUnavailable.
    """
    members = {member.user_id for member in queries.members(app, channel, MOST_MEMBERS + 1)}
    if len(members) > MOST_MEMBERS:
        return members, []
    kept, _ = queries.read(app, PREFIX + channel, 0, MOST_CHANGES, newest_first=True)
    return members, [Change(*orjson.loads(entry.body)) for entry in kept]


def at(entries: Iterable[int], members: set[str], changes: Sequence[Change]) -> dict[int, list[str]]:
    """The members at each of these entries of the channel, sorted; without the entries before the kept changes.

    If the user of a join is absent, or the one of a leave present, a change between is missing: earlier entries are
    left out, too.
    """
    present, position = set(members), 0
    found: dict[int, list[str]] = {}
    for entry in sorted(entries, reverse=True):
        while position < len(changes) and changes[position].entry > entry:
            change = changes[position]
            if change.joined is not (change.user in present):
                return found
            (present.discard if change.joined else present.add)(change.user)
            position += 1
        if position == len(changes):
            return found
        found[entry] = sorted(present)
    return found


def timeline(items: Sequence[dict[str, Any]], members: set[str], changes: Sequence[Change]) -> None:
    """Add `members`, the first ones, and `member_count` to the items of a timeline, where they are known."""
    ids = {int(item["entry"].partition(":")[2]): item for item in items}
    for entry, present in at(ids, members, changes).items():
        ids[entry] |= {"members": present[:MEMBERS_SHOWN], "member_count": len(present)}
