"""The calls of a worker to a partition: operations and wants of scripts/apply.lua, and their answers."""

from __future__ import annotations

import collections
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fanfare.engine import errors, interface
from fanfare.engine.redis import entries

logger = logging.getLogger(__name__)

Operation = tuple[Any, ...]
Want = tuple[Any, ...]


class Answer(NamedTuple):
    """`results`: of the operations of the call; `found`: by want."""

    generation: str
    top: int
    results: Sequence[Any]
    found: dict[Want, Any]


Settled = Callable[[Answer | None, errors.EngineError | None], None]  # called once, with one of them


@dataclass(slots=True)
class Call:
    """Operations that run together, in their order, and the reads after them. `born`: monotonic time, for the timeout.
    `frees`: the call frees memory, so it also runs if the memory of the server is full."""

    operations: Sequence[Operation]
    settled: Settled
    wants: Sequence[Want] = ()
    frees: bool = False
    born: float = field(default_factory=time.monotonic)
    size: int = 0  # bytes of the bodies
    is_settled: bool = False


def sockets(call: Call, name: str) -> set[Operation]:
    """The channels and sockets of the joins (`j`) or leaves (`l`) of a call."""
    return {operation[1:5] for operation in call.operations if operation[0] == name}


def settle(calls: Sequence[Call] | collections.deque[Call], error: errors.EngineError) -> None:
    for call in calls:
        settle_one(call, None, error)


def settle_one(call: Call, answer: Answer | None, error: errors.EngineError | None) -> None:
    if call.is_settled:
        return
    call.is_settled = True
    try:
        call.settled(answer, error)
    except Exception:
        # An exception of one caller must not leave the others without an answer.
        logger.exception("The answer to %s could not be handled", [operation[0] for operation in call.operations])


def ignore(_answer: Answer | None, _error: errors.EngineError | None) -> None:
    """The outcome does not matter to the caller."""


def identity(app: str, channel: str) -> str:
    return f"{app}:{channel}"


def append(publication: interface.Publication) -> Operation:
    """Raises UnicodeEncodeError for a name that is not Unicode text."""
    kind, app, channel = int(publication.kind), publication.app, publication.channel
    name = identity(app, channel)
    is_for_all = kind == interface.Kind.CONTROL or channel == interface.USERS
    plain = ("a", kind, entries.meta(publication), publication.body, "all" if is_for_all else f"@{name}")
    size, seconds = publication.retention or (False, False)
    key, cache = publication.idempotency_key, publication.cache_seconds
    if size is False and key is None and cache is None:
        return plain
    return (*plain, name, size, seconds, key or False, False if cache is None else cache)


def receipt(result: Any) -> interface.Receipt:
    """Raises EngineUnavailable if the operation failed."""
    check(result)
    if isinstance(result, int):
        return interface.Receipt(None, duplicate=not result, id=result)
    epoch, offset, sequence = result
    return interface.Receipt(interface.Position(epoch.decode(), offset), duplicate=not sequence, id=sequence)


def check(result: Any) -> None:
    if isinstance(result, Exception):
        raise errors.EngineUnavailable(f"Redis refused an operation: {result}")


def history_want(app: str, channel: str, history: interface.RecoveryRequest) -> Want:
    after, rewind = history.after, history.rewind
    return (
        "h",
        identity(app, channel),
        after.epoch if after else False,
        after.offset if after else 0,
        history.max_entries,
        history.max_bytes,
        history.continued,
        rewind.count if rewind and not after else False,
        rewind.seconds if rewind else 0,
    )


def wants(wanted: interface.SubscribeRequest) -> list[Want]:
    """The reads for a subscriber."""
    name = identity(wanted.app, wanted.channel)
    found: list[Want] = []
    if wanted.member is not None and wanted.channel != interface.USERS:
        found.append(("m", name))
    if wanted.cached:
        found.append(("c", name, wanted.app, wanted.channel))
    if wanted.counted:
        found.append(("n", name))
    if wanted.watch:
        found.append(("o", identity(wanted.app, interface.USERS), wanted.watch))
    if wanted.streams:
        found.append(("t", name))
    if wanted.history is not None:
        found.append(history_want(wanted.app, wanted.channel, wanted.history))
    return found


def value_of(want: Want, answer: Answer, wanted: interface.SubscribeRequest) -> Any:
    """The result of a want, decoded once for all subscribers that wait for it. Raises EngineUnavailable."""
    value = answer.found[want]
    check(value)
    if want[0] == "m" and isinstance(value, list):
        value = answer.found[want] = members(value)
    elif want[0] == "h" and wanted.history is not None and isinstance(value, list):
        value = answer.found[want] = recovery(wanted.history, value)
    elif want[0] == "t" and isinstance(value, list):
        value = answer.found[want] = streams(value)
    return value


def streams(found: Sequence[Any]) -> tuple[interface.Streamed, ...]:
    """The result of scripts/texts.lua."""
    return tuple(
        interface.Streamed(
            stream.decode(), interface.StreamState(state), seq, size, head, tuple(parts), body, offset or None
        )
        for stream, state, seq, size, head, body, offset, parts in found
    )


def stream_write(write: interface.StreamWrite) -> tuple[Any, ...]:
    """A write in the form that scripts/write_streams.lua reads."""
    size, seconds = write.retention or (False, False)
    fields = (*write[:10], int(write.state), size, seconds, *write[12:])
    return tuple(False if field is None else field for field in fields)


def stream_receipt(result: Sequence[Any]) -> interface.StreamReceipt:
    done, state, seq, size, *over = result
    return interface.StreamReceipt(bool(done), None if state < 0 else interface.StreamState(state), seq, size, *over)


def members(flat: Sequence[bytes]) -> tuple[interface.Member, ...]:
    return tuple(interface.Member(flat[index].decode(), flat[index + 1].decode()) for index in range(0, len(flat), 2))


def recovery(history: interface.RecoveryRequest, found: Any) -> interface.RecoveryResult:
    """The result of the `h` want."""
    epoch, offset, reason, count, parts = found
    position = interface.Position(epoch.decode(), offset)
    if reason:
        return interface.RecoveryResult(position, reason=reason.decode(), complete=True)
    kept = tuple(entries.read_all(parts))
    if history.after is not None and len(kept) < len(parts):
        # A newer release has written some. Without them the recovery is not complete.
        return interface.RecoveryResult(position, reason="engine_unavailable", complete=True)
    complete = True
    if history.after is not None:
        complete = (kept[-1].offset if kept else history.after.offset) == offset
    return interface.RecoveryResult(position, kept, count, complete=complete)
