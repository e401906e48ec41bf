"""What the workers of one deployment share, behind one interface.

An engine is first of all a *log*. Whatever happens to a channel (an event, a member who came or left, a command to
every worker) is an entry of that log, and a worker acts on what it reads back from it, its own publications included.
So there is one order, and everybody sees it.

Beside the log an engine keeps what must be true for the whole deployment at any moment: who is present, how many
subscribers each worker has, which workers live. A change of presence and its log entry are one transaction.

The promise that makes the hub simple is that of `attach`: `ready` is called synchronously at an instant when this
worker's tail stands exactly where the snapshot was read. Whatever the snapshot holds was delivered before; whatever
comes later is delivered after. The caller starts delivery inside `ready` and needs no versions, no buffers and no
second look.

All methods are called on the event loop that opened the engine, unless their docstring says otherwise.
"""

from __future__ import annotations

import abc
import enum
import re
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol


class Kind(enum.IntEnum):
    """What an entry of the log is about."""

    EVENT = 0  # body: the JSON text of the frame that subscribers get, UTF-8
    MEMBER_ADDED = 1  # user_id, body: the member's user_info as JSON text
    MEMBER_REMOVED = 2  # user_id, body: empty
    CONTROL = 3  # channel: the command's name, body: its argument; every worker acts on it
    CLIENT_EVENT = 4  # an event that a client sent: body as for EVENT, exclude: its socket, user_id: who it is
    OCCUPIED = 5  # the channel's first subscriber in the whole deployment came
    VACATED = 6  # its last one went
    COUNT = 7  # body: the number of subscribers in the whole deployment, decimal
    CACHE_MISS = 8  # somebody subscribed to a cache channel that held nothing, for the first time since it did


class Entry(NamedTuple):
    """One entry of the log, as every worker reads it back.

    `id` is the global order. `offset` is the position in the channel's stream, 1, 2, 3, … without a gap, or None for a
    channel that keeps no history. `exclude` is the socket id that must not get it. `body` is described by `Kind`.
    """

    id: int
    kind: int
    app: str
    channel: str
    offset: int | None
    user_id: str | None
    exclude: str | None
    body: bytes


class Retention(NamedTuple):
    """How much of a channel's stream is kept: at most `size` entries, none older than `seconds`."""

    size: int
    seconds: int


class Position(NamedTuple):
    """A place in a channel's stream. Offsets of different epochs are not comparable."""

    epoch: str
    offset: int

    def __str__(self) -> str:
        return f"{self.epoch}:{self.offset}"

    @classmethod
    def parse(cls, text: str) -> Position:
        """Read `EPOCH:OFFSET`, what `str` writes. Raises ValueError for anything else."""
        match = _POSITION.fullmatch(text)
        if match is None:
            raise ValueError("A position is EPOCH:OFFSET: up to 64 letters and digits, a colon and a whole number")
        return cls(match[1], int(match[2]))


# At most 18 digits: the log's integers have 63 bits.
_POSITION = re.compile(r"([0-9A-Za-z]{1,64}):(0|[1-9][0-9]{0,17})")


class Publication(NamedTuple):
    """What a publisher gives to the log. With `retention` it gets an offset and is kept; without, it lives for seconds.

    `idempotency_key` is scoped to (app, channel): a second publication with the same key within `IDEMPOTENCY_SECONDS`
    stores nothing and is answered with the first one's receipt.
    """

    app: str
    channel: str
    body: bytes
    kind: Kind = Kind.EVENT
    user_id: str | None = None
    exclude: str | None = None
    retention: Retention | None = None
    idempotency_key: str | None = None
    cache_seconds: int | None = None


MAX_IDEMPOTENCY_KEY = 128  # characters, of printable ASCII
IDEMPOTENCY_SECONDS = 600  # longer than any SDK's retries, short enough that the table stays small


class Budget(NamedTuple):
    """How many publications an application may make in one second, in the whole deployment."""

    app: str
    per_second: int


class Receipt(NamedTuple):
    """The answer to a publication that is now in the log. `position` is None where no history is kept."""

    id: int
    position: Position | None
    duplicate: bool


class Member(NamedTuple):
    """Somebody in a presence channel: `info` is the user_info as JSON text (`null` if there is none)."""

    user_id: str
    info: str


@dataclass(frozen=True, slots=True)
class Rewind:
    """The newest entries of a stream: at most `count`, none older than `seconds`; 0 for no bound of that kind."""

    count: int
    seconds: int


@dataclass(frozen=True, slots=True)
class RecoveryRequest:
    """Which part of a kept channel's past is wanted: all after a position, or the newest.

    More than `max_entries` or `max_bytes` (of bodies) are refused as `too_many`. `continued`: this is the next chunk of
    a replay that was granted.
    """

    after: Position | None = None
    rewind: Rewind | None = None
    max_entries: int = 300
    max_bytes: int = 1_048_576
    continued: bool = False


@dataclass(frozen=True, slots=True)
class RecoveryResult:
    """The answer to a `RecoveryRequest`.

    `position`: the stream's top at this instant; a channel that never kept anything has one too, at offset 0, so that
    whoever came before its first entry can come back. `entries`: the next chunk, oldest first. `count`: how many
    entries there were to replay, this chunk included. `complete`: the chunk reaches the tail, and delivery goes on from
    here; otherwise the subscriber is not attached yet, and asks again after its last entry. `reason`: why nothing is
    replayed: `epoch_changed`, `position_expired` or `too_many`.
    """

    position: Position | None
    entries: tuple[Entry, ...] = ()
    count: int = 0
    complete: bool = False
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class SubscribeRequest:
    """What a subscriber asks the engine for: to be a member, to be told things, and to start exactly there.

    `durable`: the counts that were set before are written first.
    `member`: its user is present from now on until `leave` with the same `socket_id`; a user's first connection appends
    a MEMBER_ADDED entry, delivered before the answer. `member_limit` bounds distinct users. `cached`: the cached event
    is wanted. `counted`: the number of subscribers is wanted. `watch`: which of these users are online is wanted.
    `history`: the channel's past is wanted.
    """

    app: str
    channel: str
    socket_id: str = ""
    durable: bool = True
    member: Member | None = None
    member_limit: int | None = None
    cached: bool = False
    counted: bool = False
    watch: tuple[str, ...] = ()
    history: RecoveryRequest | None = None


@dataclass(frozen=True, slots=True)
class SubscribeResult:
    """The answer to an `SubscribeRequest`, as far as it was asked for.

    `members`: the distinct users of the channel, the joiner included, oldest first. `cached`: the body of the cached
    event, or None. `subscribers`: of the whole deployment. `online`: those of `watch` who are signed in somewhere.
    """

    members: tuple[Member, ...] = ()
    cached: bytes | None = None
    subscribers: int = 0
    online: tuple[str, ...] = ()
    replayed: RecoveryResult | None = None


class Cached(NamedTuple):
    """A cache channel's event, and for how many more seconds it is kept."""

    body: bytes
    ttl: int


@dataclass(frozen=True, slots=True)
class Refused:
    """Why an `attach` or an `admit` was not done. `code`: `member_limit`, `connection_limit` or
    `engine_unavailable`."""

    code: str
    message: str
    limit: int | None = None
    actual: int | None = None


class ChannelCounts(NamedTuple):
    """How occupied a channel is, over all workers: connections, and distinct users (0 for all but presence
    channels)."""

    subscriptions: int
    users: int


@dataclass(slots=True)
class Health:
    ok: bool
    reason: str
    details: dict[str, Any] = field(default_factory=dict)


Deliver = Callable[[Sequence[Entry]], None]
OnGap = Callable[[str], None]
Ready = Callable[[SubscribeResult | Refused], None]


class Engine(abc.ABC):
    """See the module's docstring. An engine object may be made at import; it touches nothing before `open` or a
    blocking call."""

    # -- life ----------------------------------------------------------------------------------------------------------

    @abc.abstractmethod
    async def open(self, deliver: Deliver, on_gap: OnGap) -> None:
        """Become a worker: be known to the others, follow the log from its present end.

        `deliver` gets the entries in the log's order, in one synchronous call per read. `on_gap` is called with a
        reason when entries may have been missed: the caller must drop all that it has attached; delivery then starts
        again from the present, and not before the call of a `when_written` that was asked for in `on_gap`. Raises
        EngineMisconfigured or EngineUnavailable.
        """

    @abc.abstractmethod
    async def close(self) -> None:
        """Leave: members, counts and the worker's own entry go now and not when somebody notices. Idempotent."""

    @abc.abstractmethod
    def health(self) -> Health:
        """Whether publications can be acknowledged now, and if not, why."""

    @abc.abstractmethod
    def statistics(self) -> dict[str, int | float]:
        """Counters since the start of this process, by name."""

    # -- the log -------------------------------------------------------------------------------------------------------

    def skip_unheard(self, skip: bool) -> None:  # noqa: B027 - who cannot tell them delivers them all
        """Whether the engine may leave out of deliveries what nobody on this worker can hear: all but commands, the
        entries of USERS, and those of channels that have subscribers here, as `set_subscribers` said before.

        Not from inside a delivery. After it was taken back every entry is delivered, from the next one on.
        """

    def present(self) -> int | None:
        """The newest entry that this worker has read, delivered or left out. None: the engine does not know."""
        return None

    @abc.abstractmethod
    def post(self, publication: Publication, failed: Callable[[str], None]) -> None:
        """`append` for one publication that nobody waits for, in the order of both calls. `failed(why)` is called if it
        is not in the log, maybe before this returns.
        """

    @abc.abstractmethod
    def append(self, publications: Sequence[Publication], *, budget: Budget | None = None) -> Awaitable[list[Receipt]]:
        """Add publications, all of them or none, in this order. Done when they are durable.

        Raises OverBudget if `budget` has no room for all of them, and EngineUnavailable, after which none of them is in
        the log unless the time-out of the commit itself was the reason.
        """

    @abc.abstractmethod
    def append_blocking(self, publications: Sequence[Publication], timeout: float | None = None) -> list[Receipt]:
        """`append` for any thread of any process, with or without `open` (a shell, a task worker, a view). `timeout` in
        seconds."""

    @abc.abstractmethod
    async def read(
        self, app: str, channel: str, after: int, limit: int, *, before: int | None = None, newest_first: bool = False
    ) -> tuple[list[Entry], Position | None]:
        """Kept entries of a stream with offset > `after` and < `before`, and the stream's top.

        The oldest of them first; with `newest_first` the newest.
        """

    @abc.abstractmethod
    def save_session(self, app: str, token: str, record: bytes, seconds: int) -> None:
        """Keep a client's record in place of the one before: for so long after now, and for `LATE_SECONDS` more while
        there is room, which is for `LATE_SESSIONS`. Written soon; the last one wins."""

    @abc.abstractmethod
    async def load_session(self, app: str, token: str) -> bytes | None:
        """The record, if it is still kept."""

    @abc.abstractmethod
    def when_written(self, then: Callable[[], None]) -> None:
        """Call `then` when all that this worker asked to be written before is written, or could not be; maybe before
        this returns."""

    # -- presence and counts -------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def set_subscribers(self, app: str, channel: str, count: int, *, announce: bool = False) -> None:
        """Say how many subscribers this worker has on a channel: absolute, never a difference. Written soon, with
        others.

        A channel that was empty everywhere gets an OCCUPIED entry, one that is empty everywhere now a VACATED one. With
        `announce` changes get COUNT entries: each of them up to `ANNOUNCE_ALWAYS` subscribers, then one in
        `ANNOUNCE_SECONDS`.
        """

    @abc.abstractmethod
    def attach(self, wanted: SubscribeRequest, ready: Ready) -> None:
        """Do what `wanted` says, and call `ready` with the answer (see the module's docstring), maybe before
        returning."""

    @abc.abstractmethod
    def leave(self, app: str, channel: str, socket_id: str) -> None:
        """Take one connection's member away; a user's last one appends MEMBER_REMOVED. Retried until it is written."""

    @abc.abstractmethod
    def admit(self, app: str, limit: int, ready: Ready) -> None:
        """Ask whether one more connection of this application fits under `limit` in the whole deployment.

        The caller has counted it already with `set_subscribers(app, CONNECTIONS, n)`.
        """

    # -- questions about the whole deployment --------------------------------------------------------------------------

    @abc.abstractmethod
    async def channels(self, app: str, prefix: str = "") -> dict[str, ChannelCounts]:
        """The occupied channels whose names start with `prefix`."""

    @abc.abstractmethod
    async def channel(self, app: str, channel: str) -> ChannelCounts:
        """The counts of one channel; zeros where nobody is subscribed."""

    @abc.abstractmethod
    async def cached(self, app: str, channel: str) -> Cached | None:
        """The event that a cache channel holds."""

    @abc.abstractmethod
    async def members(self, app: str, channel: str) -> list[Member]:
        """The distinct users of a presence channel, oldest first."""

    @abc.abstractmethod
    def questions(self) -> AbstractContextManager[Queries]:
        """The same questions, and the past, for any thread of any process, with or without `open`.

        The answers are what the workers have written: a count that changed this instant may be missing. Raises
        EngineUnavailable, inside the block too.
        """

    # -- consumers that must see every entry ---------------------------------------------------------------------------

    @abc.abstractmethod
    async def lease(self, name: str) -> Lease:
        """Wait until this worker is the one that holds `name`. When it dies another one that waits gets it."""

    @abc.abstractmethod
    async def entries(self, after: int, limit: int) -> list[Entry]:
        """Entries of the log with id > `after`, oldest first; those that a cursor has not passed are there."""

    @abc.abstractmethod
    async def cursor(self, name: str) -> int:
        """How far a named consumer has come; a new one starts at the present. Nothing after it is trimmed, for
        `CURSOR_SECONDS`."""

    @abc.abstractmethod
    async def move_cursor(self, name: str, position: int) -> None:
        """The consumer has kept what it needs of everything up to `position`."""

    @abc.abstractmethod
    async def drop_cursor(self, name: str) -> None:
        """The consumer is no more: hold nothing back for it."""


class Queries(Protocol):
    """Answers at once, in the thread that asks. Each is `Engine`'s method of the same name, `present` aside."""

    def channels(self, app: str, prefix: str = "") -> dict[str, ChannelCounts]: ...

    def channel(self, app: str, channel: str) -> ChannelCounts: ...

    def members(self, app: str, channel: str) -> list[Member]: ...

    def present(self, app: str, channel: str, user_ids: Sequence[str]) -> set[str]:
        """Those of these users who are members of a channel; of USERS: who are signed in."""

    def read(
        self, app: str, channel: str, after: int, limit: int, *, before: int | None = None, newest_first: bool = False
    ) -> tuple[list[Entry], Position | None]: ...


class Signal(Protocol):
    """Something that happens once, like an asyncio.Event."""

    def is_set(self) -> bool: ...

    async def wait(self) -> object: ...


class Lease(abc.ABC):
    """Held from when `Engine.lease` returned it. `lost` is set if another worker may hold it now."""

    lost: Signal

    @abc.abstractmethod
    def release(self) -> None:
        """Let another worker have it. Idempotent."""


CONNECTIONS = ""  # the `channel` under which a worker counts an application's connections
USERS = "#users"  # the `channel` whose members are the signed-in users of an application

# Pusher's own bounds for pusher_internal:subscription_count.
ANNOUNCE_ALWAYS = 100  # subscribers
ANNOUNCE_SECONDS = 5

# Who comes back later than it may is no newcomer: as long as its record is there it gets what the history still has, or
# is told that events are lost. A record has some 300 bytes.
LATE_SECONDS = 24 * 3600
LATE_SESSIONS = 100_000

# A consumer whose store is away (the database of the webhooks) may be this late before the log stops waiting for it.
CURSOR_SECONDS = 24 * 3600
