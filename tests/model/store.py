"""A store in memory and the engines of its workers. No step happens by itself: the explorer orders them.

A worker's writes wait until they are committed as one group, or fail. One step reads at most `READ` entries.
Subscriptions are answered in the step that reaches the end of the log, as `Engine.attach` promises.
"""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from fanfare.engine import errors, interface
from tests.unit.protocol import fakes

READ = 2
CHANNEL = "presence-kept"
STREAMED = ("kept-1", "kept-2")  # a reader of an event stream cannot be a member
PARTITIONS = {CHANNEL: 0, "kept-1": 0, "kept-2": 1}
APP = fakes.APPLICATION.id


@dataclass
class Kept:
    """The record of a resume token. `taken_s`: when it was last taken from another holder."""

    record: bytes | None = None
    holder: str | None = None
    taken_s: float | None = None


class Store:
    """All channels have the same stream of events."""

    def __init__(self, kept: int) -> None:
        self.kept = kept
        self.log: list[interface.Entry] = []
        self.trimmed_to = 0
        self.generation = 0
        self.offset = 0
        self.expired_to = 0  # entries of the stream up to this offset are gone
        self.sessions: dict[str, Kept] = {}  # by resume token
        self.members: dict[str, interface.Member] = {}  # by socket id, in the order in which they came
        self.counter = 0  # of published numbers
        self.acknowledged: set[int] = set()
        self.lost: set[int] = set()  # acknowledged numbers that the store has lost since
        self.is_moved = False  # it acknowledges nothing any more

    @property
    def epoch(self) -> str:
        return f"epoch{self.generation}"

    @property
    def top(self) -> int:
        return self.log[-1].id if self.log else self.trimmed_to

    def publish(self, bodies: Mapping[str, bytes]) -> None:
        """One event on each of these channels, in one group. All channels have the same offsets."""
        self.offset += 1
        self.expired_to = max(self.expired_to, self.offset - self.kept)
        for channel, body in bodies.items():
            self.append(interface.Kind.EVENT, channel, body, offset=self.offset)

    def append(
        self,
        kind: interface.Kind,
        channel: str,
        body: bytes,
        *,
        user_id: str | None = None,
        offset: int | None = None,
    ) -> None:
        fields = {"kind": kind.value, "app": APP, "channel": channel, "offset": offset, "user_id": user_id}
        self.log.append(interface.Entry(id=self.top + 1, exclude=None, body=body, **fields))  # type: ignore[arg-type]

    def positions_of(self, token: str) -> dict[str, Any]:
        """The acknowledged positions in a stored record."""
        kept = self.sessions.get(token)
        return {} if kept is None or not kept.record else dict(orjson.loads(kept.record).get("seen", {}))

    def history(self, channel: str, after: int) -> list[interface.Entry]:
        after = max(after, self.expired_to)
        return [entry for entry in self.log if entry.channel == channel and (entry.offset or 0) > after]

    def recover(self, channel: str, request: interface.RecoveryRequest) -> interface.RecoveryResult:
        position = interface.Position(self.epoch, self.offset)
        after = request.after
        if after is None:
            return interface.RecoveryResult(position, complete=True)
        reason = None
        if after.epoch != self.epoch or after.offset > self.offset:
            reason = "epoch_changed"
        elif after.offset < self.expired_to:
            reason = "position_expired"
        if reason is not None:
            return interface.RecoveryResult(position, reason=reason, complete=True)
        entries = self.history(channel, after.offset)
        chunk = tuple(entries[:1])  # the smallest chunks: a long recovery
        return interface.RecoveryResult(position, chunk, len(entries), complete=len(chunk) == len(entries))

    def lose_tail(self) -> None:
        """A failover to a replica without the newest event of each channel: it begins a new generation."""
        gone = [entry for entry in self.log if entry.offset == self.offset and self.offset]
        self.log = [entry for entry in self.log if entry not in gone]
        self.lost |= {number_of(entry.body) for entry in gone}
        self.offset -= bool(gone)
        self.expired_to = min(self.expired_to, self.offset)
        self.generation += 1

    def expire(self) -> None:
        """The kept entries are older than the history goes."""
        self.expired_to = self.offset

    def moved(self) -> Store:
        """The new store after a move of the log: the streams with their positions, and the records without holders.
        Members are not copied."""
        self.is_moved = True
        new = copy.copy(self)
        new.is_moved, new.members, new.log = False, {}, list(self.log)
        new.sessions = {token: Kept(kept.record, None, kept.taken_s) for token, kept in self.sessions.items()}
        return new

    def trim(self) -> None:
        """Forget all entries for workers that are late; the stream keeps its entries."""
        self.trimmed_to = self.top


class Engine(fakes.Engine):
    """One worker's. `steps`: what can happen now."""

    def __init__(self, store: Store, name: str) -> None:
        super().__init__()
        self.store = store
        self.name = name
        self.position = 0
        self.generation = 0
        self._on_gap: interface.OnGap = lambda reason, partition: None
        self.gaps: set[int | None] = set()  # partitions with a gap; None: all
        self.writes: list[tuple[str, Callable[[], None], Callable[[bool], None]]] = []  # (what, write, settled)
        self.waiting: list[tuple[interface.SubscribeRequest, interface.Ready]] = []
        self.knows_move = False  # it has told the hub that its store was moved
        self.closing: asyncio.Future[None] | None = None  # while it is left, if that takes steps of its own
        self.refuses_open = self.is_open = False

    async def open(self, deliver: interface.Deliver, on_gap: interface.OnGap) -> None:
        if self.refuses_open:
            self.refuses_open = False
            raise errors.EngineUnavailable("The new store does not answer")
        self._deliver, self._on_gap, self.is_open = deliver, on_gap, True
        self._follow()

    async def close(self) -> None:
        if self.closing is not None:
            await self.closing
            self.writes = [write for write in self.writes if write[0] != "barrier"]  # they get no answer
        if self.store.is_moved:
            waiting, self.waiting = self.waiting, []
            self._refuse(waiting)
            self.fail()
            self.writes.clear()  # those that are retried

    def _follow(self) -> None:
        self.position, self.generation = self.store.top, self.store.generation

    def _submit(self, what: str, write: Callable[[], None], settled: Callable[[bool], None]) -> None:
        self.writes.append((what, write, settled))

    # -- steps ---------------------------------------------------------------------------------------------------------

    @property
    def is_behind(self) -> bool:
        if not self.is_open:
            return False
        return bool(self.waiting) or self.position < self.store.top or self.generation != self.store.generation

    @property
    def can_miss(self) -> bool:
        """Entries wait to be read, and nothing else is wrong with the log."""
        store = self.store
        return self.generation == store.generation and store.trimmed_to <= self.position < store.top

    def commit(self, *, answered: bool = True, times: int = 1) -> None:
        """The group is written. `answered`: with False, the worker gets an error although the write succeeded.
        `times`: with 2, the answer is lost and the engine repeats the group. A store that was moved refuses it."""
        if self.store.is_moved:
            self.fail()
            return
        group, self.writes = self.writes, []
        for _ in range(times):
            for _, write, _ in group:
                write()
        for *_, settled in group:
            settled(answered)

    def fail(self) -> None:
        group, self.writes = self.writes, []
        for *_, settled in group:
            settled(False)

    def read(self) -> None:
        """One read of the log."""
        store = self.store
        if self.generation != store.generation or store.trimmed_to > self.position:
            reason = "trimmed" if self.generation == store.generation else "generation_changed"
            waiting, self.waiting = self.waiting, []
            self._follow()
            self._refuse(waiting)
            self.gaps.add(None)
            self._on_gap(reason, None)
            return
        new = [entry for entry in store.log if entry.id > self.position]
        step = new[:READ]
        if step:
            self.position = step[-1].id
            self._deliver(step)
        if len(step) == len(new):
            self._answer_waiting()

    def notice(self) -> None:
        """The store refuses a heartbeat because it was moved."""
        self.knows_move = True
        waiting, self.waiting = self.waiting, []
        self._refuse(waiting)
        self.gaps.add(None)
        self._on_gap("moved", None)

    def miss(self, partition: int) -> None:
        """The worker finds that it missed the new entries of one partition. It reads those of the others."""
        assert self.generation == self.store.generation
        new = [entry for entry in self.store.log if entry.id > self.position]
        self.position = self.store.top
        self._deliver([entry for entry in new if self.partition(entry.app, entry.channel) != partition])
        refused = [one for one in self.waiting if self.partition(APP, one[0].channel) == partition]
        self.waiting = [one for one in self.waiting if one not in refused]
        self._refuse(refused)
        self._answer_waiting()
        self.gaps.add(partition)
        self._on_gap("trimmed", partition)

    def _refuse(self, waiting: Sequence[tuple[interface.SubscribeRequest, interface.Ready]]) -> None:
        for _, ready in waiting:
            ready(interface.Refused("engine_unavailable", "The worker starts again"))

    def _answer_waiting(self) -> None:
        waiting, self.waiting = self.waiting, []
        for wanted, ready in waiting:
            ready(self._answer(wanted))

    def _answer(self, wanted: interface.SubscribeRequest) -> interface.SubscribeResult:
        members = {one.user_id: one for one in self.store.members.values()} if wanted.member else {}
        replayed = None if wanted.history is None else self.store.recover(wanted.channel, wanted.history)
        return interface.SubscribeResult(tuple(members.values()), replayed=replayed)

    # -- the interface -------------------------------------------------------------------------------------------------

    def attach(self, wanted: interface.SubscribeRequest, ready: interface.Ready) -> None:
        member, socket_id, store = wanted.member, wanted.socket_id, self.store

        def join() -> None:
            assert member is not None
            if member.user_id not in {one.user_id for one in store.members.values()}:
                body = member.info.encode()
                store.append(interface.Kind.MEMBER_ADDED, wanted.channel, body, user_id=member.user_id)
            store.members[socket_id] = member

        def settled(written: bool) -> None:
            if written:
                self.waiting.append((wanted, ready))
            else:
                ready(interface.Refused("engine_unavailable", "The store did not answer"))

        if member is not None:
            self._submit(f"join {member.user_id}", join, settled)
        elif wanted.durable:
            self._submit("touch", lambda: None, settled)
        else:
            self.waiting.append((wanted, ready))

    def leave(self, app: str, channel: str, socket_id: str) -> None:
        def leave() -> None:
            gone = self.store.members.pop(socket_id, None)
            if gone is not None and gone.user_id not in {one.user_id for one in self.store.members.values()}:
                self.store.append(interface.Kind.MEMBER_REMOVED, channel, b"", user_id=gone.user_id)

        def settled(written: bool) -> None:
            if not written:
                self._submit(what, leave, settled)  # retried until it is written

        member = self.store.members.get(socket_id)
        what = f"leave {member.user_id if member is not None else None}"
        self._submit(what, leave, settled)

    def set_subscribers(self, app: str, channel: str, count: int, *, announce: bool = False) -> None:
        pass

    def partition(self, app: str, channel: str) -> int:
        return PARTITIONS.get(channel, 0)

    def when_written(self, then: Callable[[], None]) -> None:
        if self.writes:
            self._submit("barrier", lambda: None, lambda written: then())
        else:
            then()

    # -- resume tokens -------------------------------------------------------------------------------------------------

    def save_session(
        self, app: str, token: str, record: bytes, seconds: int, *, holder: str = "", release: bool = False
    ) -> None:
        def save() -> None:
            kept = self.store.sessions.setdefault(token, Kept())
            if holder and kept.holder not in (None, holder):
                return
            kept.record = record
            if release:
                kept.holder = None

        def settled(written: bool) -> None:
            if not written:
                self._submit("save", save, settled)  # retried until it is written

        self._submit("save", save, settled)

    async def load_session(self, app: str, token: str) -> bytes | None:
        found: list[bytes | None] = []
        kept = self.store.sessions
        await self._asked("load", lambda: found.append(kept[token].record if token in kept else None))
        return found[-1]

    async def take_session(self, app: str, token: str, holder: str) -> interface.Taken:
        found: list[interface.Taken] = []

        def take() -> None:
            kept = self.store.sessions.setdefault(token, Kept())
            before, now_s = kept.holder, time.monotonic()
            if before in (None, holder):
                kept.holder = holder
                found.append(interface.Taken(kept.record or None, None, None))
                return
            changed_s = None if kept.taken_s is None else now_s - kept.taken_s
            kept.holder, kept.taken_s = holder, now_s
            body = orjson.dumps({"token": token, "changed_s": changed_s})
            self.store.append(interface.Kind.SESSION_TAKEN, "", body, user_id=before)
            found.append(interface.Taken(kept.record or None, before, changed_s))

        await self._asked(f"take {holder}", take)
        return found[0]

    async def _asked(self, what: str, act: Callable[[], None]) -> None:
        """A call whose answer is awaited."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def settled(written: bool) -> None:
            if not done.done():
                done.set_result(None) if written else done.set_exception(errors.EngineUnavailable("no answer"))

        self._submit(what, act, settled)
        await done

    def append(self, publications: Sequence[interface.Publication], *, budget: Any = None) -> Any:
        raise NotImplementedError


def number_of(body: bytes) -> int:
    """Of an event's frame."""
    return int(body.rpartition(b'"data":"')[2].partition(b'"')[0])
