"""What the workers of one deployment share, behind one interface.

An engine is first of all a *log*. Each event, each member that joins or leaves and each command to the workers is an
entry of that log, and a worker acts on the entries that it reads back, its own publications included. So all workers
see one order. The log is divided into partitions: a channel belongs to one of them, and each has an order of its own.

Beside the log an engine keeps the state of the whole deployment: the members of presence channels, the number of
subscribers of each worker, and the workers that are alive. A change of presence and its log entry are one transaction.

`attach` is what keeps the hub simple: `ready` is called synchronously, at an instant when this worker's reader stands
exactly where the snapshot was taken. Entries that the snapshot contains were delivered before; all later entries are
delivered after. The caller starts delivery inside `ready` and needs no versions and no buffers.

The interfaces are grouped by job: `Log`, `PresenceAndCounts`, `Sessions`, `Coordination`. An `Engine` is all of them.
All methods are called on the event loop that opened the engine, unless their docstring says otherwise.
"""

from __future__ import annotations

import abc
import enum
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar, cast

T = TypeVar("T")

# -- entries and publications ------------------------------------------------------------------------------------------


class Kind(enum.IntEnum):
    """What an entry of the log is about.

    Workers of two releases read one log during an upgrade. An entry in a new form gets a new kind; a worker of the
    earlier release passes over kinds above its `NEWEST_KIND`, and reports no recovery without them as complete.
    """

    EVENT = 0  # body: the JSON text of the frame that subscribers get, UTF-8
    MEMBER_ADDED = 1  # user_id, body: the member's user_info as JSON text
    MEMBER_REMOVED = 2  # user_id, body: empty
    CONTROL = 3  # channel: the command's name, body: its argument; every worker acts on it
    CLIENT_EVENT = 4  # an event from a client: body as for EVENT, exclude: its socket, user_id: its user, if it has one
    OCCUPIED = 5  # the channel has its first subscriber in the whole deployment
    VACATED = 6  # the channel's last subscriber left
    COUNT = 7  # body: the number of subscribers in the whole deployment, decimal
    CACHE_MISS = 8  # a client subscribed to a cache channel without an event, the first since its last event
    MESSAGE = 9  # channel: a mailbox; body: for the workers that listen to it
    SESSION_TAKEN = 10  # user_id: the holder that lost its session, body: see `Sessions.take_session`
    STREAM = 11  # a piece of a stream, never kept. user_id: the stream's id, body as for EVENT
    STREAM_END = 12  # the end of a stream. user_id: the stream's id, body: the frame with the whole text
    REVISED = 13  # a kept message has a new version; body: the frame that says so
    MEMBER_UPDATED = 14  # user_id, body: the member's new user_info as JSON text


NEWEST_KIND = max(Kind).value


class Entry(NamedTuple):
    """One entry of the log, as every worker reads it back.

    `id` is the order within the partition. `offset` is the position in the channel's stream, 1, 2, 3, … without a gap,
    or None for a channel that keeps no history. `exclude` is the socket id that must not get it. `body`: see `Kind`.
    """

    id: int
    kind: int
    app: str
    channel: str
    offset: int | None
    user_id: str | None
    exclude: str | None
    body: bytes
    created_ms: int = 0  # when the engine stored it, Unix time by the clock of the engine; 0: unknown

    @property
    def stream_offset(self) -> int:
        """The offset of a kept entry."""
        return cast("int", self.offset)

    @property
    def is_message(self) -> bool:
        """Whether a history shows this kept entry: not replaced, deleted, a notice of a revision, or of a newer
        release."""
        return bool(self.body) and self.kind != Kind.REVISED and self.kind <= NEWEST_KIND


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
        """Read `EPOCH:OFFSET`, the form that `str` writes. Raises ValueError for anything else."""
        match = _POSITION.fullmatch(text)
        if match is None:
            raise ValueError("A position is EPOCH:OFFSET: up to 64 letters and digits, a colon and a whole number")
        return cls(match[1], int(match[2]))


# At most 18 digits: the log's integers have 63 bits.
_POSITION = re.compile(r"([0-9A-Za-z]{1,64}):(0|[1-9][0-9]{0,17})")


class Publication(NamedTuple):
    """An entry to be appended. With `retention` it gets an offset and is kept; without, it stays for seconds.

    `idempotency_key` is scoped to (app, channel): a second publication with the same key within `IDEMPOTENCY_SECONDS`
    stores nothing and gets the first one's receipt. `cache_seconds`: it becomes the event of a cache channel for so
    long.
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
    """The answer to a publication that is now in the log. `position` is None where no history is kept. `duplicate`: the
    log had one with this idempotency key, and the position is that one's. `id`: of the entry in its partition; 0 for a
    duplicate, and where the engine does not know it."""

    position: Position | None
    duplicate: bool
    id: int = 0


# Called with the receipts and None, or with the reason why they may be missing in the log. It must not raise.
Appended = Callable[[Sequence[Receipt], BaseException | None], None]


# -- streams -----------------------------------------------------------------------------------------------------------


class StreamState(enum.IntEnum):
    """Of a stream. An OPEN one grows; the others have their final text."""

    OPEN = 0
    DONE = 1
    FAILED = 2  # the producer reported an error
    CANCELLED = 3  # a reader or a backend stopped it
    INTERRUPTED = 4  # the producer was silent for longer than its lease


RESUMABLE = frozenset([StreamState.FAILED, StreamState.INTERRUPTED])  # a producer may open these again


class StreamWrite(NamedTuple):
    """One change of a stream: a message of a channel that grows piece by piece.

    It is done only if the stream's number is `after`; the stream then has the number `seq` and the length `size`. So a
    repeated write is done once. `head`: opens the stream, or opens one in a state of `RESUMABLE` again; not read by
    the engine. `part`: added to the stream's parts; with `replaces`, it replaces all of them. `body`: the frame that
    subscribers get now; empty for none. A write without `part` and `body` renews the lease.

    `state`: of the stream afterwards. One that ends it has the frame with the whole text as `body`; with `retention`
    that becomes a kept entry of the channel. `keeps_parts`: they stay beside the frame until the stream is forgotten.

    `seconds`: of an open stream's lease; of an ended one, how long subscribers still get it. `max_in_channel`,
    `max_in_app`: of open streams.
    """

    app: str
    channel: str
    id: str
    after: int
    seq: int
    size: int
    part: bytes = b""
    body: bytes = b""
    head: bytes | None = None
    replaces: bool = False
    state: StreamState = StreamState.OPEN
    retention: Retention | None = None
    keeps_parts: bool = False
    seconds: int = 15
    max_in_channel: int | None = None
    max_in_app: int | None = None


class StreamReceipt(NamedTuple):
    """The answer to a `StreamWrite`. `done`: whether it was done. The other fields: the stream as it is now.

    `state` is None for an unknown stream. `limit` and `actual`: of open streams, where they are too many. `error`: why
    the deployment of remote mode refused this write alone.
    """

    done: bool
    state: StreamState | None
    seq: int = 0
    size: int = 0
    limit: int | None = None
    actual: int | None = None
    error: Exception | None = None


class Streamed(NamedTuple):
    """A stream with its text.

    `parts`: of an open one, in order. `body`: of an ended one, the frame with the whole text. `offset`: of its kept
    entry.
    """

    id: str
    state: StreamState
    seq: int
    size: int
    head: bytes
    parts: tuple[bytes, ...] = ()
    body: bytes | None = None
    offset: int | None = None


class StreamName(NamedTuple):
    app: str
    channel: str
    id: str


class Revision(NamedTuple):
    """A new version of a kept message, which stays at its position. `body`: its new frame; empty: it is deleted.
    `notice`: the frame that subscribers get, an entry with an offset of its own."""

    app: str
    channel: str
    position: Position
    body: bytes
    notice: bytes


# -- subscriptions -----------------------------------------------------------------------------------------------------


class Member(NamedTuple):
    """A user in a presence channel: `info` is the user_info as JSON text (`null` if there is none)."""

    user_id: str
    info: str


def distinct_members(rows: Iterable[tuple[str, str]]) -> tuple[Member, ...]:
    """A member for each user, with the info of its last row, in the order of the first rows.

    Not `dict(rows)`, which would block all threads for 20 ms with 100,000 rows.
    """
    found = {user_id: info for user_id, info in rows}  # noqa: C416
    return tuple(map(Member._make, found.items()))


@dataclass(frozen=True, slots=True)
class Rewind:
    """The newest entries of a stream: at most `count`, none older than `seconds`; 0 for no bound of that kind."""

    count: int
    seconds: int


@dataclass(frozen=True, slots=True)
class RecoveryRequest:
    """Which part of a channel's history is requested: all entries after a position, or the newest ones.

    More than `max_entries` or `max_bytes` (of bodies) are refused as `too_many`. `continued`: this asks for the next
    chunk of a recovery that was granted.
    """

    after: Position | None = None
    rewind: Rewind | None = None
    max_entries: int = 300
    max_bytes: int = 1_048_576
    continued: bool = False


@dataclass(frozen=True, slots=True)
class RecoveryResult:
    """The answer to a `RecoveryRequest`.

    `position`: the stream's top at this instant; a channel that never kept anything has one too, at offset 0, so that a
    client that subscribed before the first entry can recover. `entries`: the next chunk, oldest first. `count`: how
    many entries there were to recover, this chunk included. `complete`: the chunk reaches the reader's position, and
    delivery continues from here; otherwise the subscriber is not attached yet and asks again after its last entry.
    `reason`: why no entries are given: `epoch_changed`, `position_expired` or `too_many`.
    """

    position: Position | None
    entries: tuple[Entry, ...] = ()
    count: int = 0
    complete: bool = False
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class SubscribeRequest:
    """What a subscriber asks of the engine.

    `durable`: the counts that were set before are written first. `member`: its user is present from now on until
    `leave` with the same `socket_id`; a user's first connection appends a MEMBER_ADDED entry, which is delivered before
    the answer. `member_limit` bounds distinct users. `cached`: answer with the cached event. `counted`: answer with the
    number of subscribers. `watch`: answer which of these users are online. `history`: recover this part of the
    channel's history. `streams`: answer with the channel's open streams and those that ended lately.
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
    streams: bool = False


@dataclass(frozen=True, slots=True)
class SubscribeResult:
    """The answer to a `SubscribeRequest`, with the parts that it asked for.

    `members`: the distinct users of the channel, the new one included, oldest first. `cached`: the body of the cached
    event, or None. `subscribers`: of the whole deployment. `online`: the users of `watch` that are signed in.
    """

    members: tuple[Member, ...] = ()
    cached: bytes | None = None
    subscribers: int = 0
    online: tuple[str, ...] = ()
    replayed: RecoveryResult | None = None
    streams: tuple[Streamed, ...] = ()


@dataclass(frozen=True, slots=True)
class Refused:
    """Why an `attach` or an `admit` was not done. `code`: `member_limit`, `connection_limit` or
    `engine_unavailable`."""

    code: str
    message: str
    limit: int | None = None
    actual: int | None = None


def too_many_members(limit: int, actual: int) -> Refused:
    message = f"The channel has {actual} members; {limit} are allowed"
    return Refused("member_limit", message, limit, actual)


def too_many_connections(limit: int, others: int) -> Refused:
    """`others`: the connections without the one that is refused."""
    message = f"The application's maximum number of connections is reached ({others} of {limit})"
    return Refused("connection_limit", message, limit, others)


# -- queries -----------------------------------------------------------------------------------------------------------


class Cached(NamedTuple):
    """A cache channel's event, and for how many more seconds it is kept."""

    body: bytes
    ttl: int


class ChannelCounts(NamedTuple):
    """How occupied a channel is, over all workers: connections, and distinct users (0 for all but presence
    channels)."""

    subscriptions: int
    users: int


class Queries(Protocol):
    """Queries about the whole deployment. They block, and an object is used by one thread at a time.

    A coroutine of a worker uses `Engine.ask`, any other code `Engine.queries`. They raise EngineUnavailable.
    """

    def channels(self, app: str, prefix: str = "") -> dict[str, ChannelCounts]:
        """The occupied channels whose names start with `prefix`."""

    def search(self, app: str, text: str, after: str, limit: int) -> list[tuple[str, ChannelCounts]]:
        """The first occupied channels after a name, whose names contain `text`, in the engine's order of names. Without
        the users' own channels: an application has one for each user."""
        after = max(after, LAST_INTERNAL)
        found = sorted((name, counts) for name, counts in self.channels(app).items() if text in name and name > after)
        return found[:limit]

    def channel(self, app: str, channel: str) -> ChannelCounts:
        """The counts of one channel; zeros for a channel without subscribers."""

    def members(self, app: str, channel: str, limit: int | None = None) -> list[Member]:
        """The distinct users of a presence channel, oldest first. With `limit`, at most so many, in any order: it costs
        what these cost, also in a channel with 100,000 members."""

    def present(self, app: str, channel: str, user_ids: Sequence[str]) -> set[str]:
        """Those of these users that are members of a channel; for USERS: those that are signed in."""

    def cached(self, app: str, channel: str) -> Cached | None:
        """The event of a cache channel."""

    def read(
        self,
        app: str,
        channel: str,
        after: int,
        limit: int,
        *,
        before: int | None = None,
        newest_first: bool = False,
        max_bytes: int | None = None,
    ) -> tuple[list[Entry], Position | None]:
        """Kept entries of a stream with offset > `after` and < `before`, and the stream's top.

        The oldest of them first; with `newest_first` the newest. With `max_bytes`, the last one is the first with which
        the bodies have more bytes.
        """

    def stream(self, app: str, channel: str, stream_id: str) -> Streamed | None:
        """A stream that is open or ended lately."""
        return None

    def streams(self, app: str, channel: str) -> list[Streamed]:
        """The streams of a channel that are open or ended lately."""
        return []

    def lapsed_streams(self, limit: int) -> list[StreamName]:
        """Open streams whose lease is over."""
        return []


# -- sessions and coordination -----------------------------------------------------------------------------------------


class Taken(NamedTuple):
    """The answer of `take_session`.

    `record`: the one that was saved last, if it is still kept. `holder`: the one before, if its worker is alive and it
    had not released the session. `changed_s`: the seconds since the session was last taken from such a holder; None if
    it never was. `lost_s`: the seconds since the store lost records, or may have lost some; None if it is not known to
    have lost any.
    """

    record: bytes | None
    holder: str | None
    changed_s: float | None
    lost_s: float | None = None


class Signal(Protocol):
    """Something that happens once, like an asyncio.Event."""

    def is_set(self) -> bool: ...

    async def wait(self) -> object: ...


class Lease(abc.ABC):
    """Held from when `Engine.lease` returned it. `lost` is set before another worker can hold it. `term` is larger for
    each later holder of the same name."""

    lost: Signal
    term: int

    @abc.abstractmethod
    def release(self) -> None:
        """Let another worker have it. Idempotent."""


class Consumer(abc.ABC):
    """Reads the entries of some kinds of one partition, in order and without a gap, across holders of a lease.

    The log keeps the entries of these kinds after the position that was kept, for `CONSUMER_SECONDS`. For a transient
    consumer it keeps nothing beyond its usual time; if it calls `keep` less often than every `TRANSIENT_SECONDS`, it
    may miss entries.

    `log_id`: changes when ids begin again (the log is a new one, or lost its newest entries). `position`: everything up
    to this id was given out by `next`, or is of other kinds.
    """

    log_id: str
    position: int

    @abc.abstractmethod
    async def next(self, limit: int, within_s: float) -> list[Entry]:
        """The next entries, at most `limit`; waits up to `within_s` for the first one, and may return none.

        Raises EngineUnavailable.
        """

    @abc.abstractmethod
    async def keep(self, position: int) -> None:
        """Everything up to `position` is processed: a consumer of this name that begins later begins there."""

    @abc.abstractmethod
    async def drop(self) -> None:
        """Remove the kept position: the log keeps nothing for this consumer."""

    @abc.abstractmethod
    def close(self) -> None:
        """Stop reading. The kept position stays. Idempotent."""


@dataclass(slots=True)
class Health:
    ok: bool
    reason: str
    details: dict[str, Any] = field(default_factory=dict)


Deliver = Callable[[Sequence[Entry]], None]
OnGap = Callable[[str, int | None], None]  # (reason, partition; None: all partitions)
Ready = Callable[[SubscribeResult | Refused], None]


# -- the interfaces ----------------------------------------------------------------------------------------------------


class Log(abc.ABC):
    """Append entries, and say which are delivered to this worker.

    A worker gets the entries of the channels that it has subscribers on (`PresenceAndCounts.set_subscribers`) or
    listens to, all CONTROL entries, and those of the channel USERS.
    """

    partitions: int  # known after `open`

    @abc.abstractmethod
    def partition(self, app: str, channel: str) -> int:
        """The partition of a channel, 0 ≤ n < `partitions`."""

    @abc.abstractmethod
    def append(self, publications: Sequence[Publication], *, budget: Budget | None = None) -> Awaitable[list[Receipt]]:
        """Add publications in this order: those of one channel all or none. Done when they are durable.

        May be called on any event loop. Raises OverBudget if `budget` has no room for all of them, and
        EngineUnavailable, after which some may be in the log: repeat with an idempotency key.
        """

    def append_then(self, publications: Sequence[Publication], then: Appended, *, budget: Budget | None = None) -> bool:
        """`append` without a future: calls `then` on the running loop, after this has returned True. False: nothing was
        appended, because the engine needs a future; call `append`. Raises EngineUnavailable if the engine is closed."""
        return False

    @abc.abstractmethod
    def post(self, publication: Publication, failed: Callable[[str], None]) -> None:
        """`append` without waiting, in the order of both calls. `failed(reason)` is called if the publication is not
        in the log, maybe before this returns.
        """

    @abc.abstractmethod
    def append_blocking(self, publications: Sequence[Publication], timeout: float | None = None) -> list[Receipt]:
        """`append` for any thread of any process, with or without `open` (a shell, a task worker, a view). `timeout` in
        seconds."""

    @abc.abstractmethod
    def write_streams(self, writes: Sequence[StreamWrite], timeout: float | None = None) -> list[StreamReceipt]:
        """Change streams, each independently of the others, for any thread of any process. Done when it is durable.

        Raises EngineUnavailable, after which some may be done: repeat. With several partitions, openings of the
        same instant may exceed `max_in_app`.
        """

    @abc.abstractmethod
    def revise(self, revision: Revision, timeout: float | None = None) -> Position | None:
        """Change a kept message, for any thread of any process. The position of the notice; None if the message is not
        kept, or deleted.

        Raises EngineUnavailable, after which it may be done.
        """

    @abc.abstractmethod
    def open_channel(self, app: str, channel: str, timeout: float | None = None) -> Position:
        """The newest position of a channel's stream, for any thread of any process. A channel that never kept an entry
        gets an epoch, so that a subscriber can begin at its offset 0. Raises EngineUnavailable.
        """

    @abc.abstractmethod
    def listen(self, app: str, channel: str, on: bool) -> None:
        """Start or stop delivery of a channel or mailbox to this worker, without being counted as a subscriber.

        An entry that is appended after this returns is delivered. A mailbox is a channel of the application "".
        """


class PresenceAndCounts(abc.ABC):
    """The members of channels, the numbers of subscribers, and snapshots of both."""

    @abc.abstractmethod
    def attach(self, wanted: SubscribeRequest, ready: Ready) -> None:
        """Do what `wanted` says, and call `ready` with the answer (see the module's docstring), maybe before
        returning."""

    @abc.abstractmethod
    def leave(self, app: str, channel: str, socket_id: str) -> None:
        """Remove one connection's member; a user's last one appends MEMBER_REMOVED. Retried until it is written."""

    @abc.abstractmethod
    def update_member(self, app: str, channel: str, user_id: str, info: str, timeout: float | None = None) -> bool:
        """Give a member a new info, for any thread of any process. False: the user is no member of the channel.

        Raises EngineUnavailable, after which it may be done.
        """

    @abc.abstractmethod
    def lease_member(
        self,
        app: str,
        channel: str,
        user_id: str,
        info: str | None,
        seconds: float,
        *,
        limit: int | None = None,
        timeout: float | None = None,
    ) -> bool | Refused:
        """Make a user a member for `seconds` without a connection, or renew it; for any thread of any process.

        True: the user was no member before. An `info` that differs is an update of the member; None leaves it as it
        is. A member whose time is over leaves. `limit` bounds distinct users, as `SubscribeRequest.member_limit` does.

        Raises EngineUnavailable, after which it may be done: repeat.
        """

    @abc.abstractmethod
    def release_member(self, app: str, channel: str, user_id: str, timeout: float | None = None) -> bool:
        """End what `lease_member` began, for any thread of any process. False: there was nothing to end.

        Connections of the same user stay members. Raises EngineUnavailable.
        """

    @abc.abstractmethod
    def set_subscribers(self, app: str, channel: str, count: int, *, announce: bool = False) -> None:
        """Set the number of subscribers of this worker on a channel: an absolute number. Written soon, with others.

        The first subscriber of the deployment appends an OCCUPIED entry, the last one's departure a VACATED one. With
        `announce` changes append COUNT entries: each one up to `ANNOUNCE_ALWAYS` subscribers, then one in
        `ANNOUNCE_SECONDS`.
        """

    @abc.abstractmethod
    def admit(self, app: str, limit: int, ready: Ready) -> None:
        """Ask whether one more connection of this application fits under `limit` in the whole deployment.

        The caller has counted it already with `set_subscribers(app, CONNECTIONS, n)`.
        """


class Sessions(abc.ABC):
    """Records of pages that may reconnect, each with one holder at a time."""

    @abc.abstractmethod
    def save_session(
        self, app: str, token: str, record: bytes, seconds: int, *, holder: str = "", release: bool = False
    ) -> None:
        """Store a record in place of the one before, for `seconds`, and for `LATE_SECONDS` more as one of at most
        `LATE_SESSIONS`. Written soon.

        With `holder`: only if this holder has the session, or none has it. `release`: nothing holds it afterwards.
        """

    @abc.abstractmethod
    async def load_session(self, app: str, token: str) -> bytes | None:
        """The record, if it is still kept. Its holder stays as it is. Raises EngineUnavailable."""

    @abc.abstractmethod
    async def take_session(self, app: str, token: str, holder: str) -> Taken:
        """Make `holder` (a socket id of this worker) the session's holder; one step in the whole deployment.

        If the holder before is alive, its worker, and no other, gets a SESSION_TAKEN entry: `app`, `user_id`: that
        holder, body: JSON object with `token` and `changed_s`, the same as in the answer. Raises EngineUnavailable.
        """

    @abc.abstractmethod
    def when_written(self, then: Callable[[], None]) -> None:
        """Call `then` when everything that this worker asked to be written before is written, or failed; maybe before
        this returns."""


class Coordination(abc.ABC):
    """Work that one worker of the deployment does, and consumers that must see every entry."""

    @abc.abstractmethod
    async def lease(self, name: str) -> Lease:
        """Wait until this worker holds `name`. After the holder's death a waiting worker gets it.

        Raises EngineUnavailable if the engine is closed in the meantime.
        """

    @abc.abstractmethod
    async def consume(
        self,
        name: str,
        partition: int,
        kinds: frozenset[Kind],
        *,
        after: int | None = None,
        transient: bool = False,
    ) -> Consumer:
        """Begin to read the entries of `kinds` at the position that was kept under this name. A name without one and a
        transient consumer begin after the entry `after`, by default at the newest one. One consumer of a name at a
        time: hold a lease.
        """


class Engine(Log, PresenceAndCounts, Sessions, Coordination):
    """An engine object may be made at import; it touches nothing before `open` or a blocking call."""

    @abc.abstractmethod
    async def open(self, deliver: Deliver, on_gap: OnGap) -> None:
        """Become a worker: register, and follow the log from its newest entry.

        `deliver` gets the entries of a partition in the order of their ids, in one synchronous call per read. `on_gap`
        is called with a reason when entries may have been missed, and with the partition, None for all: the caller must
        drop all that it has attached there; delivery then starts again at the newest entry, and not before the call of
        a `when_written` that was requested in `on_gap`. Raises EngineMisconfigured or EngineUnavailable.
        """

    @property
    @abc.abstractmethod
    def is_open(self) -> bool:
        """Whether this process is a worker. May be asked in any thread."""

    @property
    def is_moved(self) -> bool:
        """Whether this process has found that the log was moved to another store. May be asked in any thread."""
        return False

    @abc.abstractmethod
    async def close(self) -> None:
        """Stop being a worker: its members and counts are removed now, not after a timeout. Idempotent."""

    @abc.abstractmethod
    def health(self) -> Health:
        """Whether publications can be acknowledged and are delivered now, and if not, why. From memory."""

    @abc.abstractmethod
    def statistics(self) -> dict[str, int | float]:
        """Counters since the start of this process, by name."""

    @abc.abstractmethod
    async def ask(self, query: Callable[[Queries], T]) -> T:
        """Run `query` in the engine's own thread. It sees what this worker wrote before. Raises EngineUnavailable."""

    @abc.abstractmethod
    def queries(self) -> AbstractContextManager[Queries]:
        """The queries for any thread of any process, with or without `open`.

        The answers are what the workers have written: a count that changed this instant may be missing. Raises
        EngineUnavailable, inside the block too.
        """


# Publishers that wait for the log get EngineUnavailable after this time, and at most 1.5 s more if a commit has begun:
# before the 5 s after which the SDKs give up and report no more than a timeout.
APPEND_TIMEOUT_S = 3.0

CONNECTIONS = ""  # the `channel` under which a worker counts an application's connections
# The `channel` of the command that gives all workers the records of publishers, for the traces of their events.
PUBLISHERS = "trace.published"
ANNOUNCED_EVENTS = 100  # in one such command; 30 kB
LAST_INTERNAL = "#\U0010ffff"  # above USERS and `#server-to-user-ID` in the order of bytes, and below other channels
USERS = "#users"  # the `channel` whose members are the signed-in users of an application
# Before the name of a presence channel: its recorded joins and leaves. They name entries of this log, so they are not
# moved to another one.
MEMBER_HISTORY = "#members-"

# Pusher's own bounds for pusher_internal:subscription_count.
ANNOUNCE_ALWAYS = 100  # subscribers
ANNOUNCE_SECONDS = 5

# The row of a member with a time to live has this in the column of the worker: the end of its life, Unix time in
# milliseconds. The text has a fixed length, so that the index of the column finds the expired rows.
LEASE_PREFIX = "until:"


def lease_until(ms: float) -> str:
    return f"{LEASE_PREFIX}{int(ms):016d}"


def lease_socket(user_id: str) -> str:
    """The socket id of such a row; no socket has this form."""
    return f"lease:{user_id}"


# A page that reconnects too late is not a new page: while its record exists, it gets the entries that the history
# still has, or a notice that events are lost. A record has some 300 bytes.
LATE_SECONDS = 24 * 3600
LATE_SESSIONS = 100_000

# A consumer whose store is away (the database of the webhooks) may be this late before the log stops waiting for it.
CONSUMER_SECONDS = 24 * 3600
# A transient consumer, such as a live tail, is forgotten this long after its last `keep`.
TRANSIENT_SECONDS = 30
