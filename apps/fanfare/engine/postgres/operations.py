"""What a worker asks the function `apply` to do: one operation is one row of its arrays."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fanfare.engine import errors, interface


class Row(NamedTuple):
    """The answer to one operation; which fields mean something depends on the operation (functions.sql)."""

    ord: int
    id: int | None
    epoch: str | None
    offset: int | None
    flag: bool
    limit: int | None
    actual: int | None
    record: bytes | None


class Operation(NamedTuple):
    """The columns of `apply`, in their order."""

    name: str
    app: str = ""
    channel: str = ""
    body: bytes | None = None
    n: int | None = None
    user: str | None = None
    exclude: str | None = None
    size: int | None = None
    seconds: int | None = None
    key: str | None = None
    cache: int | None = None


# Called once: with the rows by the position of the operation in the call, or with the error.
Settled = Callable[[dict[int, Row], errors.EngineError | None], None]


def ignore(_rows: dict[int, Row], _error: errors.EngineError | None) -> None:
    """The outcome does not matter to the caller."""


@dataclass(slots=True)
class Call:
    """Operations that are committed together, in their order. `born`: monotonic time, for those that wait too long."""

    operations: Sequence[Operation]
    settled: Settled = ignore
    born: float = field(default_factory=time.monotonic)
    logs: bool = True  # whether it may add entries
    size: int = 0  # bytes of the bodies, once it waits


APPLY = (
    "SELECT * FROM {}(%s::text, %s::boolean, %s::text[], %s::text[], %s::text[], %b::bytea[], %s::bigint[], "
    "%s::text[], %s::text[], %s::integer[], %s::integer[], %s::text[], %s::integer[])"
)


def arguments(worker: str | None, operations: Sequence[Operation], *, notify: bool) -> list[Any]:
    """The parameters of `APPLY`."""
    return [worker, notify, *map(list, zip(*operations, strict=True))]


WRITE_STREAMS = (
    "SELECT * FROM {}(%s::text[], %s::text[], %s::text[], %s::bigint[], %s::bigint[], %s::bigint[], "
    "%s::bytea[], %s::bytea[], %s::bytea[], %s::boolean[], %s::integer[], %s::integer[], %s::integer[], "
    "%s::boolean[], %s::integer[], %s::integer[], %s::integer[])"
)


def stream_arguments(writes: Sequence[interface.StreamWrite]) -> list[Any]:
    """The parameters of `WRITE_STREAMS`."""
    rows = [
        (
            *write[:10],
            write.state.value,
            *(write.retention or (None, None)),
            *write[12:],
        )
        for write in writes
    ]
    return list(map(list, zip(*rows, strict=True)))


def stream_receipts(rows: Sequence[tuple[Any, ...]]) -> list[interface.StreamReceipt]:
    return [
        interface.StreamReceipt(done, None if state is None else interface.StreamState(state), seq, size, limit, actual)
        for _, done, state, seq, size, limit, actual in rows
    ]


def append(publications: Sequence[interface.Publication], budget: interface.Budget | None) -> list[Operation]:
    """Publications, all or none."""
    found = []
    if budget is not None:
        found.append(Operation("budget", budget.app, n=budget.per_second, size=len(publications)))
    for one in publications:
        size, seconds = one.retention or (None, None)
        found.append(
            Operation(
                "append",
                one.app,
                one.channel,
                one.body,
                int(one.kind),
                one.user_id,
                one.exclude,
                size,
                seconds,
                one.idempotency_key,
                one.cache_seconds,
            )
        )
    return found


def receipts(
    operations: Sequence[Operation], rows: dict[int, Row]
) -> tuple[list[interface.Receipt], errors.OverBudget | None]:
    """What `append` came to."""
    found: list[interface.Receipt] = []
    for index, operation in enumerate(operations):
        if operation.name == "budget":
            refusal = rows.get(index)
            if refusal is not None and refusal.flag:
                return [], errors.OverBudget(refusal.limit or 0, refusal.actual or 0)
            continue
        row = rows[index]
        position = None if row.epoch is None else interface.Position(row.epoch, row.offset or 0)
        found.append(interface.Receipt(position, duplicate=row.flag, id=0 if row.flag else row.id or 0))
    return found, None
