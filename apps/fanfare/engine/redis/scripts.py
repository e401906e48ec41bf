"""The Lua scripts of this folder. The server knows each by its hash, so two releases can run their own side by side."""

from __future__ import annotations

import hashlib
import importlib.resources
from dataclasses import dataclass, field
from typing import Final

from fanfare.engine import interface

VERSION: Final = 1  # of the keys and the entries
LEASE_S: Final = 10  # a worker that has not renewed for so long is dead
POSITION_OUTLIVES: Final = 10  # a stream's position outlives its entries this many times, and an hour
EMPTY_STREAM_SECONDS: Final = 360
BORN_MS: Final = 600_000  # a pass of a move that takes longer lists all streams again
TAKEN_SECONDS: Final = 600  # how long a session without a record is kept; a connected page saves one within seconds
MISS_SECONDS: Final = 3600
CHUNK_ENTRIES: Final = 512  # of a recovery, in one answer
CHUNK_BYTES: Final = 256 * 1024
FILL_ENTRIES: Final = 2_000  # that a new consumer gets from the log; 8 to 18 ms of a busy server
EXPIRED_AT_ONCE: Final = 200  # members with a time to live, in one beat: about 3 ms of the server

# The kinds of the entries that the scripts add by themselves.
_KINDS: Final = (
    interface.Kind.MEMBER_ADDED,
    interface.Kind.MEMBER_REMOVED,
    interface.Kind.OCCUPIED,
    interface.Kind.VACATED,
    interface.Kind.COUNT,
    interface.Kind.CACHE_MISS,
    interface.Kind.SESSION_TAKEN,
    interface.Kind.STREAM,
    interface.Kind.STREAM_END,
    interface.Kind.REVISED,
    interface.Kind.MEMBER_UPDATED,
)
_CONSTANTS: Final[dict[str, int]] = {
    **{kind.name: kind.value for kind in _KINDS},
    "ANNOUNCE_ALWAYS": interface.ANNOUNCE_ALWAYS,
    "ANNOUNCE_MS": interface.ANNOUNCE_SECONDS * 1000,
    "IDEMPOTENCY_SECONDS": interface.IDEMPOTENCY_SECONDS,
    "CONSUMER_MS": interface.CONSUMER_SECONDS * 1000,
    "LATE_MS": interface.LATE_SECONDS * 1000,
    "LEASE_MS": LEASE_S * 1000,
    "POSITION_OUTLIVES": POSITION_OUTLIVES,
    "EMPTY_STREAM_SECONDS": EMPTY_STREAM_SECONDS,
    "BORN_MS": BORN_MS,
    "TAKEN_MS": TAKEN_SECONDS * 1000,
    "MISS_SECONDS": MISS_SECONDS,
    "CHUNK_ENTRIES": CHUNK_ENTRIES,
    "CHUNK_BYTES": CHUNK_BYTES,
    "FILL_ENTRIES": FILL_ENTRIES,
    "EXPIRED_AT_ONCE": EXPIRED_AT_ONCE,
}


@dataclass(frozen=True, slots=True)
class Script:
    """`flags`: see "Eval flags" in the documentation of Redis."""

    text: str
    sha: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sha", hashlib.sha1(self.text.encode()).hexdigest())  # noqa: S324  (Redis' own name)


def _read(name: str) -> str:
    folder = importlib.resources.files(__package__).joinpath("scripts")
    return folder.joinpath(f"{name}.lua").read_text(encoding="utf-8")


def _script(name: str, *parts: str, flags: str = "") -> Script:
    constants = "\n".join(f"local {constant} = {value}" for constant, value in _CONSTANTS.items())
    header = f"#!lua flags={flags}" if flags else "#!lua"
    return Script("\n".join([header, constants, *map(_read, ("common", *parts, name))]))


# With full memory Redis refuses APPLY and PUBLISH as a whole, before it has written anything. The life of a worker must
# be renewed then, and calls that free memory must run.
APPLY: Final = _script("apply", "append", "presence", "texts")
PUBLISH: Final = _script("publish", "append")
FREE: Final = _script("apply", "append", "presence", "texts", flags="allow-oom")
BEAT: Final = _script("beat", "append", "presence", flags="allow-oom")
ENTER: Final = _script("enter", flags="allow-oom")
REMOVE: Final = _script("remove", "append", "presence", flags="allow-oom")
CHECK: Final = Script(f"#!lua\n{_read('check')}")
CHANNELS: Final = _script("channels", "append", "presence", flags="no-writes")
SEARCH: Final = _script("search", "append", "presence", flags="no-writes")
HISTORY: Final = _script("history", flags="no-writes")
STREAMS: Final = _script("streams", "texts", flags="no-writes")
HEADS: Final = _script("heads", flags="no-writes")
STRINGS: Final = _script("strings", flags="no-writes")
LAPSED: Final = _script("lapsed", flags="no-writes")
WRITE_STREAMS: Final = _script("write_streams", "append", "kept")
REVISE: Final = _script("revise", "append", "kept")
UPDATE_MEMBER: Final = _script("update_member", "append", "presence")
LEASE_MEMBER: Final = _script("lease_member", "append", "presence")
RELEASE_MEMBER: Final = _script("release_member", "append", "presence", flags="allow-oom")
# Of workers; those of threads are loaded at their first use.
ALL: Final = (APPLY, PUBLISH, FREE, BEAT, ENTER, REMOVE, CHECK)
WRITING: Final = frozenset(  # of threads
    [APPLY, PUBLISH, WRITE_STREAMS, REVISE, UPDATE_MEMBER, LEASE_MEMBER, RELEASE_MEMBER]
)
