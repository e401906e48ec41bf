"""The joins and leaves of presence channels, kept where the channel rule has `record_members`, for time travel.

One worker of the deployment reads them from the log and appends them to the channel `#members-CHANNEL`, which has the
rule's retention. Nothing subscribes to it. The members at an event are today's members with the later changes undone.
The page therefore asks the recording worker first whether it has recorded all changes so far.

While a rule does not record, changes are missing. Therefore the worker appends a marker with the recording rules to
`#members-PARTITION` whenever they have changed, and members are known only since the recording's last start.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

import orjson

from fanfare.applications import registry, rules
from fanfare.console import survey
from fanfare.engine import errors as engine_errors
from fanfare.engine import interface
from fanfare.hub import hub as hubs
from fanfare.jobs import declarations, log_consumer
from fanfare.protocol import names
from fanfare.runtime import supervisor

logger = logging.getLogger(__name__)

NAME: Final = "member history"  # of the job and of its consumer
PREFIX: Final = interface.MEMBER_HISTORY
KINDS: Final = frozenset([interface.Kind.MEMBER_ADDED, interface.Kind.MEMBER_REMOVED])
LOOK_S: Final = 1.0  # the delay until the first rule that records, or the removal of the last one, is noticed
MOST_CHANGES: Final = 2_000  # of one answer
MOST_MEMBERS: Final = 1_000
MEMBERS_SHOWN: Final = 100  # at each event
STARTS_KEPT: Final = 20  # markers of a partition; each has the rules of all applications that record
STARTS: Final = interface.Retention(STARTS_KEPT, 10 * 365 * 86_400)  # longer than any change is kept
RECORDED: Final = "members.recorded"  # a question to all workers
NOTICE_S: Final = 0.1  # until the recording worker reads a change that was committed before: 20 to 50 ms
PATIENCE_S: Final = 0.8  # less than `survey.WAIT_S`
POLL_S: Final = 0.01


class Change(NamedTuple):
    """A member joined or left. `entry`: the id of the log's entry, in the partition of the channel."""

    entry: int
    user: str
    joined: bool


class Start(NamedTuple):
    """A marker. From the entry after `entry` on, the changes of the channels of these rules are recorded.

    `rules`: by application's id, its patterns in order, each with its retention; 0 and 0 if it does not record. `at`:
    Unix time.
    """

    log_id: str
    entry: int
    rules: dict[str, list[list[Any]]]
    at: float = 0.0

    def retention(self, app: str, channel: str) -> interface.Retention | None:
        """None: the changes of the channel are not recorded."""
        rule = rules.Rules(tuple(rules.Rule(*one) for one in self.rules.get(app, ()))).of(channel)
        return None if rule is None or not rule.history_size else rule.retention


class Recorded(NamedTuple):
    """What is known of a channel: its members now, and the changes, the newest first.

    `start`: the entry after which all changes were recorded, at the time `since`; None: nothing is known. `is_whole`:
    none of them was trimmed, but those that are older than the kept events.
    """

    members: set[str]
    changes: Sequence[Change] = ()
    start: int | None = None
    since: float | None = None
    is_whole: bool = False


class MemberHistory:
    """The job. `loaded`: whether the registry was loaded; before that, an empty registry means nothing."""

    def __init__(self, hub: hubs.Hub, applications: registry.Registry, loaded: Callable[[], bool]) -> None:
        self._hub = hub
        self._registry = applications
        self._loaded = loaded
        self._tasks: supervisor.Supervisor | None = None
        # Of each partition: the job waits for the next change; how often it has read to the end and recorded all.
        self._waiting: set[int] = set()
        self._turns: collections.Counter[int] = collections.Counter()

    def job(self) -> declarations.Job:
        return declarations.Job(NAME, self.run, "deployment", parts=lambda: self.statuses)

    @property
    def statuses(self) -> Sequence[supervisor.Status]:
        return () if self._tasks is None else self._tasks.statuses

    def answer(self, asked: survey.Survey) -> None:
        """Let this worker answer whether it has recorded all changes of a partition; others give no answer."""
        asked.on(RECORDED, lambda argument: self._has_recorded(argument["partition"]))

    async def _has_recorded(self, partition: int) -> bool | None:
        if partition not in self._turns:
            return None  # another worker records, or none
        await asyncio.sleep(NOTICE_S)
        turns = self._turns[partition]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_S - NOTICE_S):
                # The turn under way may have begun to read before the question.
                while partition not in self._waiting and self._turns[partition] < turns + 2:  # noqa: ASYNC110
                    await asyncio.sleep(POLL_S)
                return True
        return False

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
            if self._loaded() and (self._is_wanted() or not is_dropped):
                await self._record(partition)
                is_dropped = True
            await asyncio.sleep(LOOK_S)

    async def _record(self, partition: int) -> None:
        """Record while a rule wants it; then the log keeps nothing for this consumer."""
        engine = self._hub.engine
        async with log_consumer.LogConsumer(engine, NAME, KINDS, partition=partition) as consumer:
            newest = await engine.ask(lambda queries: starts(queries, partition, 1))
            marked = (newest[0].log_id, newest[0].rules) if newest else ("", {})
            try:
                await self._record_all(partition, consumer, marked)
            finally:
                self._waiting.discard(partition)
                self._turns.pop(partition, None)
            await consumer.drop()

    async def _record_all(
        self, partition: int, consumer: log_consumer.LogConsumer, marked: tuple[str, dict[str, list[list[Any]]]]
    ) -> None:
        """`marked`: the log and the rules of the newest marker."""
        engine = self._hub.engine
        self._turns[partition] = 0
        is_at_end = False
        while True:
            position = consumer.position
            if is_at_end:
                self._waiting.add(partition)
            entries = await consumer.next(LOOK_S) if self._is_wanted() else []
            self._waiting.discard(partition)
            found = [change for entry in entries if (change := self._change(entry)) is not None]
            marker = Start(consumer.log_id, position, self._rules())
            if marker.rules != marked[1] or (marker.rules and marker.log_id != marked[0]):
                body = orjson.dumps(marker[:3])
                await engine.append([interface.Publication("", f"{PREFIX}{partition}", body, retention=STARTS)])
                marked = marker.log_id, marker.rules
            if found:
                await engine.append(found)
            is_at_end = len(entries) < log_consumer.READ_ENTRIES
            self._turns[partition] += is_at_end
            if not marker.rules:
                return
            await consumer.keep(at_once=bool(found))

    def _is_wanted(self) -> bool:
        return any(rule.record_members for application in self._registry.all() for rule in application.rules)

    def _rules(self) -> dict[str, list[list[Any]]]:
        """See `Start`; only of applications that record."""
        return {
            application.id: [
                [rule.pattern, *(rule.retention if rule.record_members else (0, 0))] for rule in application.rules
            ]
            for application in self._registry.all()
            if any(rule.record_members for rule in application.rules)
        }

    def _change(self, entry: interface.Entry) -> interface.Publication | None:
        """The key makes an entry that is read twice, after the death of a worker, one change."""
        application = self._registry.by_id(entry.app)
        rule = None if application is None else application.rules.of(entry.channel)
        if rule is None or not rule.record_members or not names.is_presence(entry.channel) or entry.user_id is None:
            return None
        change = Change(entry.id, entry.user_id, entry.kind == interface.Kind.MEMBER_ADDED)
        return interface.Publication(
            entry.app,
            PREFIX + entry.channel,
            orjson.dumps(list(change)),
            retention=rule.retention,
            idempotency_key=f"{entry.id}-{entry.created_ms}",
        )


def members_now(queries: interface.Queries, app: str, channel: str) -> set[str]:
    """At most MOST_MEMBERS and one. Raises EngineUnavailable."""
    return {member.user_id for member in queries.members(app, channel, MOST_MEMBERS + 1)}


def read(queries: interface.Queries, app: str, channel: str, partition: int, members: set[str]) -> Recorded:
    """The changes of a channel in its newest recording; none if there are more members than MOST_MEMBERS. `members`:
    those that the channel had since the recording worker was asked, or before. Raises EngineUnavailable.
    """
    start, size = _start(starts(queries, partition), app, channel)
    if start is None or len(members) > MOST_MEMBERS:
        return Recorded(members)
    kept, _ = queries.read(app, PREFIX + channel, 0, MOST_CHANGES, newest_first=True)
    is_whole = len(kept) < min(size, MOST_CHANGES)  # older ones were trimmed by their age alone, as the events were
    changes: list[Change] = []
    for entry in kept:
        change = Change(*orjson.loads(entry.body))
        # An entry that is not older than the one after it is of a log that lost its newest entries.
        if change.entry <= start.entry or (changes and change.entry >= changes[-1].entry):
            is_whole = True
            break
        changes.append(change)
    return Recorded(members, changes[_later_than(members, changes) :], start.entry, start.at, is_whole)


def _later_than(members: set[str], changes: Sequence[Change]) -> int:
    """How many of the newest changes came after the members were read: without these, the changes of each user end with
    what the user is. 0 if that is so for no number of them: a change is missing."""
    last: dict[str, bool] = {}
    for change in reversed(changes):
        last[change.user] = change.joined
    differing = sum(joined is not (user in members) for user, joined in last.items())
    for later, change in enumerate(changes):
        if not differing:
            return later
        differing += 1 if change.joined is (change.user in members) else -1
    return 0


def starts(queries: interface.Queries, partition: int, limit: int = STARTS_KEPT) -> list[Start]:
    """The markers of a partition, the newest first. Raises EngineUnavailable."""
    kept, _ = queries.read("", f"{PREFIX}{partition}", 0, limit, newest_first=True)
    return [Start._make([*orjson.loads(entry.body), entry.created_ms / 1000]) for entry in kept]


def _start(markers: Iterable[Start], app: str, channel: str) -> tuple[Start | None, int]:
    """The oldest marker since which the channel is recorded without a break and with one retention, and its size; None:
    it is not recorded now.
    """
    found: Start | None = None
    retention = None
    for marker in markers:
        kept = marker.retention(app, channel)
        if kept is None or (found is not None and (kept != retention or marker.log_id != found.log_id)):
            break
        found, retention = marker, kept
    return found, 0 if retention is None else retention.size


def at(entries: Iterable[int], recorded: Recorded) -> dict[int, list[str]]:
    """The members at each of these entries of the channel, sorted; without the entries before the recording.

    Without the entries before the oldest kept change, too, if older ones were trimmed. If the user of a join is absent,
    or the one of a leave present, a change between is missing: earlier entries are left out.
    """
    present, changes, position = set(recorded.members), recorded.changes, 0
    found: dict[int, list[str]] = {}
    for entry in sorted(entries, reverse=True):
        if recorded.start is None or entry < recorded.start:
            return found
        while position < len(changes) and changes[position].entry > entry:
            change = changes[position]
            if change.joined is not (change.user in present):
                return found
            (present.discard if change.joined else present.add)(change.user)
            position += 1
        if position == len(changes) and not recorded.is_whole:
            return found
        found[entry] = sorted(present)
    return found


def timeline(items: Sequence[dict[str, Any]], recorded: Recorded) -> None:
    """Add `members`, the first ones, and `member_count` to the items of a timeline, where they are known."""
    ids = {int(item["entry"].partition(":")[2]): item for item in items}
    for entry, present in at(ids, recorded).items():
        ids[entry] |= {"members": present[:MEMBERS_SHOWN], "member_count": len(present)}
