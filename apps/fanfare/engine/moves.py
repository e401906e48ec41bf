"""Move what one store holds into another: histories with their positions, cached events, resume sessions, keys of
idempotent publications, growing messages, and what consumers have not read yet.

The copy is made in passes. All but the last run while the workers write; each copies what changed since the one before.
The last one runs while the old store is frozen: writers wait or are refused, so nothing is acknowledged that the copy
lacks. Then the old store gets a mark, which every worker and publisher that still names it refuses with.

Members and counts are not copied: they belong to sockets, which connect again to workers of the new store.
"""

from __future__ import annotations

import abc
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Final, NamedTuple

from fanfare.engine import errors, interface

BATCH: Final = 200  # streams
SHORT_S: Final = 0.5  # a pass that took no longer may be repeated while the old store is frozen
PASSES: Final = 8
FROZEN_S: Final = 8.0  # the old store goes on by itself after this and a margin

ARRIVING, ARRIVED, LEAVING, MOVED = "arriving", "arrived", "leaving", "moved"


# Names of stores that this process has found to be moved away. A set of strings, so any thread may use it.
seen: Final[set[str]] = set()


class Mark(NamedTuple):
    """A note that a store keeps. `what`: ARRIVING while it is filled, ARRIVED when that is done, LEAVING while the last
    part of its content is copied, MOVED when its content is in another store. `move`: the same in both stores. `peer`:
    the other one, for people. `at`: Unix time."""

    what: str
    move: str
    peer: str
    at: int

    def text(self) -> str:
        return json.dumps(self._asdict())

    @classmethod
    def parse(cls, text: str | bytes) -> Mark:
        return cls(**json.loads(text))

    def refusal(self, here: str) -> str:
        """Why the store refuses, in one sentence; empty if it does not."""
        if self.what == ARRIVING:
            return (
                f"The log of {self.peer} is being moved to {here}, which is not complete yet. If this error "
                "persists, the move was interrupted: run `manage.py fanfare engine move` again."
            )
        if self.what == LEAVING:
            return (
                f"The log in {here} is being moved to another store; publishing continues in a moment. If it does not, "
                "the move was interrupted: run `manage.py fanfare engine move` again."
            )
        if self.what == MOVED:
            day = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(self.at))
            return f"The log in {here} was moved to {self.peer} on {day}: set FANFARE_ENGINE to that and restart."
        return ""

    def refuse_worker(self, here: str) -> None:
        """Raises EngineMisconfigured for a store that was moved, EngineUnavailable for one that is being filled."""
        if self.what == MOVED:
            seen.add(here)
            raise errors.EngineMisconfigured(self.refusal(here))
        self.refuse_write(here)

    def refuse_write(self, here: str) -> None:
        """Raises EngineMoved, EngineUnavailable."""
        if self.what == MOVED:
            seen.add(here)
            raise errors.EngineMoved(self.refusal(here))
        if self.what in (ARRIVING, LEAVING):
            raise errors.EngineUnavailable(self.refusal(here))


def is_in_use(mark: Mark | None) -> bool:
    """Whether a store with this mark may have content that is nowhere else: a move must not empty it."""
    return mark is None or mark.what == ARRIVED


# -- what is copied ----------------------------------------------------------------------------------------------------


class Stream(NamedTuple):
    """A channel's stream; `size` and `seconds`: its retention. `kept_from`: the first offset that may be there."""

    app: str
    channel: str
    epoch: str
    offset: int
    kept_from: int
    size: int
    seconds: int


Streams = dict[tuple[str, str], Stream]  # by application and channel


class Key(NamedTuple):
    """The receipt of an idempotency key."""

    app: str
    channel: str
    key: str
    position: interface.Position | None
    expires_ms: int


class CachedEvent(NamedTuple):
    """`body` None: a miss was announced and nothing was published since."""

    app: str
    channel: str
    body: bytes | None
    expires_ms: int


class Session(NamedTuple):
    """A page's record; its holder is not copied, because its socket closes. `taken_ms`: 0 for never."""

    app: str
    token: str
    record: bytes
    expires_ms: int
    taken_ms: int


class Text(NamedTuple):
    """A message that grows, see `interface.StreamWrite`."""

    app: str
    channel: str
    id: str
    state: int
    seq: int
    size: int
    until_ms: int
    offset: int | None
    head: bytes
    body: bytes | None
    parts: tuple[tuple[int, bytes], ...]


class Reading(NamedTuple):
    """A consumer of a partition. `position`: the newest entry that it has processed."""

    name: str
    partition: int
    position: int
    kinds: int


class Rest(NamedTuple):
    """What is copied once, while the old store is frozen.

    `unread`: the entries that a consumer still has to process, by partition. `log_id` and `top`: of a store with one
    partition, so that another one can go on with the same ids; None where there are several.
    """

    keys: Sequence[Key]
    cached: Sequence[CachedEvent]
    sessions: Sequence[Session]
    texts: Sequence[Text]
    readings: Sequence[Reading]
    unread: Sequence[Sequence[interface.Entry]]
    log_id: str | None
    top: int


class Start(NamedTuple):
    """Where consumers of a partition of the new store begin."""

    partition: int
    log_id: str
    position: int


Batch = Sequence[tuple[Stream, Sequence[interface.Entry]]]


def begin_reading(rest: Rest, newest: int) -> tuple[int, list[tuple[str, int, int]]]:
    """For a new store with one partition: the position after which the unread entries are, and name, position and kinds
    of each consumer. `newest`: the newest id that was given out before the unread entries."""
    if rest.log_id is not None:
        readings = [(one.name, one.position, one.kinds) for one in rest.readings]
        return min((one.position for one in rest.readings), default=rest.top), readings
    masks: dict[str, int] = {}
    for one in rest.readings:
        masks[one.name] = masks.get(one.name, 0) | one.kinds
    return newest, [(name, newest, mask) for name, mask in masks.items()]


# -- the stores --------------------------------------------------------------------------------------------------------


class Store(abc.ABC):
    """One engine's part, used by one thread. Its methods raise EngineError. `public`: its name without passwords."""

    public: str
    partitions: int
    keeps_ids = True  # its log has one order, whose ids another such log can go on with

    @abc.abstractmethod
    def mark(self) -> Mark | None: ...

    @abc.abstractmethod
    def workers(self) -> int:
        """How many are alive."""

    @abc.abstractmethod
    def close(self) -> None: ...

    # -- the old store -------------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def streams(self) -> Streams:
        """All of them."""

    @abc.abstractmethod
    def changed(self) -> Streams | None:
        """The streams that were written since the last call of `streams` or `changed`, and maybe others; without those
        that are gone. None if the store cannot tell."""

    @abc.abstractmethod
    def kept(self, wanted: Sequence[tuple[Stream, int]]) -> Iterator[tuple[Stream, list[interface.Entry]]]:
        """The kept entries of streams after an offset, oldest first, up to the stream's own offset."""

    @abc.abstractmethod
    def frozen(self) -> AbstractContextManager[None]:
        """Inside, no write of another process is acknowledged; it goes on by itself if this process dies."""

    @abc.abstractmethod
    def rest(self) -> Rest:
        """While frozen."""

    @abc.abstractmethod
    def leave(self, mark: Mark) -> None:
        """While frozen: write the mark, so that the old store never acknowledges again."""

    @abc.abstractmethod
    def left(self, mark: Mark) -> None:
        """Complete a `leave` that was interrupted after `mark` was written, where that is more than one step."""

    # -- the new store -------------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def begin(self, mark: Mark) -> None:
        """Empty it, and write the mark. Raises EngineMisconfigured where it has content of its own."""

    @abc.abstractmethod
    def put(self, batch: Batch, *, keeps_ids: bool) -> None:
        """Add entries to streams that have those before them already, or replace a stream that has none of them."""

    @abc.abstractmethod
    def forget(self, streams: Iterable[tuple[str, str]]) -> None:
        """Remove streams with their entries."""

    @abc.abstractmethod
    def finish(self, rest: Rest, mark: Mark) -> list[Start]:
        """Add the rest. Consumers begin with its unread entries."""

    @abc.abstractmethod
    def open(self, mark: Mark) -> None:
        """Replace the mark: workers may start. Again, if it was interrupted."""


class Report(NamedTuple):
    """`frozen_s`: how long publishing was refused."""

    move: str
    streams: int
    entries: int
    sessions: int
    cached: int
    unread: int
    passes: int
    frozen_s: float
    workers: int


class Freeze:
    """How long publishing is stopped already, and by what."""

    def __init__(self) -> None:
        self._began_s = self._step_s = time.monotonic()
        self._longest = (0.0, "")

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began_s

    def check(self, step: str) -> None:
        """After a step, or a part of one: raise EngineUnavailable if publishing has been stopped for too long."""
        now_s = time.monotonic()
        self._longest = max(self._longest, (now_s - self._step_s, step))
        self._step_s = now_s
        if self.seconds > FROZEN_S:
            took_s, what = self._longest
            raise errors.EngineUnavailable(
                f"Publishing was stopped for {self.seconds:.1f} s, and a move may stop it for {FROZEN_S:g} s: nothing "
                f"was moved, and the old store continues to serve. The longest step was {what}: {took_s:.1f} s. "
                "Move again when the machine and both stores are less busy."
            )


class Mover:
    """Moves `old` into `new`. `started(starts)` is called before the old store gets its mark: Django's rows that name
    positions of consumers change there."""

    def __init__(
        self,
        old: Store,
        new: Store,
        *,
        move: str,
        started: Callable[[Sequence[Start]], None] = lambda _starts: None,
        say: Callable[[str], None] = lambda _line: None,
    ) -> None:
        self._old = old
        self._new = new
        self._move = move
        self._started = started
        self._say = say
        self._copied: dict[tuple[str, str], Stream] = {}
        self._entries = 0
        # The ids of one log go on in another one, so consumers do not notice; several logs cannot become one so.
        self._keeps_ids = old.keeps_ids and new.keeps_ids

    def complete(self) -> bool:
        """Complete a move that was interrupted when the old store had its mark; False if there is none. Raises
        EngineError."""
        left, arrived = self._old.mark(), self._new.mark()
        if left is None or left.what != MOVED or arrived is None or arrived.move != left.move:
            return False
        if arrived.what != ARRIVING:
            return False
        self._old.left(left)
        self._new.open(arrived._replace(what=ARRIVED))
        return True

    def run(self) -> Report:
        """Raises EngineError; the old store then goes on as before."""
        old, new = self._old, self._new
        before = old.mark()
        if before is not None:
            before.refuse_worker(old.public)
        new.begin(self._mark(ARRIVING, old))
        self._pass()
        took_s = self._pass()  # lists all streams again: some may have begun or ended during the first one
        passes = 2
        while took_s > SHORT_S and passes < PASSES:
            took_s = self._pass(only_changed=True)
            passes += 1
        self._say(
            f"Copied the histories of channels: {len(self._copied)}, with events: {self._entries}. Now the switch."
        )
        workers = old.workers()
        freeze = Freeze()
        with old.frozen():
            freeze.check("the stop of publishing")
            self._pass(freeze, only_changed=True)
            rest = old.rest()
            freeze.check("the read of idempotency keys, resume tokens and streams")
            starts = new.finish(rest, self._mark(ARRIVING, old))
            freeze.check("the write of idempotency keys, resume tokens and streams")
            self._started(starts)
            old.leave(self._mark(MOVED, new))
        new.open(self._mark(ARRIVED, old))
        return Report(
            self._move,
            len(self._copied),
            self._entries,
            len(rest.sessions),
            len(rest.cached),
            sum(map(len, rest.unread)),
            passes + 1,
            freeze.seconds,
            workers,
        )

    def _mark(self, what: str, peer: Store) -> Mark:
        return Mark(what, self._move, peer.public, int(time.time()))

    def _pass(self, freeze: Freeze | None = None, *, only_changed: bool = False) -> float:
        """Copy what changed since the last pass; the seconds that it took. `only_changed`: ask the old store for the
        streams that were written, whose number and not that of all streams then decides how long it takes."""
        began = time.monotonic()
        changed = self._old.changed() if only_changed else None
        present = {
            name: stream
            for name, stream in (self._old.streams() if changed is None else changed).items()
            if not stream.channel.startswith(interface.MEMBER_HISTORY)
        }
        if changed is None:
            self._new.forget(self._copied.keys() - present.keys())
            self._copied = {name: stream for name, stream in self._copied.items() if name in present}
        wanted: list[tuple[Stream, int]] = []
        for name, stream in present.items():
            before = self._copied.get(name)
            if before == stream:
                continue
            if before is not None and before.epoch != stream.epoch:
                self._new.forget([name])
                before = None
            wanted.append((stream, before.offset if before is not None else stream.kept_from - 1))
        if freeze is not None:
            freeze.check("the list of changed channels")
        for first in range(0, len(wanted), BATCH):
            self._copy(wanted[first : first + BATCH])
            if freeze is not None:
                freeze.check("the copy of the last events")
        return time.monotonic() - began

    def _copy(self, wanted: Sequence[tuple[Stream, int]]) -> None:
        batch: list[tuple[Stream, list[interface.Entry]]] = []
        changed: list[tuple[Stream, int]] = []
        for stream, found in self._old.kept(wanted):
            if any(entry.kind > interface.NEWEST_KIND for entry in found):
                raise errors.EngineMisconfigured(
                    f"A newer release of Fanfare wrote events of the channel {stream.channel}: move with that release."
                )
            name = stream.app, stream.channel
            # A revision changes the body of an earlier entry, and the end of a stream may empty one.
            if name in self._copied and any(entry.kind in _REWRITING for entry in found):
                changed.append((stream, stream.kept_from - 1))
            else:
                batch.append((stream, found))
        if changed:
            self._new.forget([(stream.app, stream.channel) for stream, _ in changed])
            batch += self._old.kept(changed)
        self._new.put(batch, keeps_ids=self._keeps_ids)
        for stream, found in batch:
            self._copied[stream.app, stream.channel] = stream
            self._entries += len(found)


_REWRITING: Final = frozenset([interface.Kind.REVISED, interface.Kind.STREAM_END])
