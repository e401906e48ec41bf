"""Operations: publications."""

from __future__ import annotations

import threading
from asyncio import AbstractEventLoop, Future
from collections.abc import Callable, Sequence

from fanfare.engine import errors, interface
from fanfare.engine.local import operations


class Append(operations.Operation):
    """Publications, all or none."""

    __slots__ = ("budget", "publications", "receipts", "refused")

    def __init__(self, publications: Sequence[interface.Publication], budget: interface.Budget | None = None) -> None:
        super().__init__()
        self.publications = publications
        self.budget = budget
        self.receipts: list[interface.Receipt] = []
        self.refused: errors.OverBudget | None = None

    def run(self, group: operations.Group) -> None:
        self.refused = self._spend(group, self.budget) if self.budget is not None else None
        self.receipts = [self._one(group, publication) for publication in self.publications if not self.refused]

    def _spend(self, group: operations.Group, budget: interface.Budget) -> errors.OverBudget | None:
        """Count these publications into this second, unless they are too many for it."""
        second = group.now_ms // 1000
        rows = group.cursor.execute(
            "SELECT spent FROM budgets WHERE app = ? AND second = ?", (budget.app, second)
        ).fetchall()
        spent = (rows[0][0] if rows else 0) + len(self.publications)
        if spent > budget.per_second:
            return errors.OverBudget(budget.per_second, spent)
        group.cursor.execute("INSERT OR REPLACE INTO budgets VALUES (?, ?, ?)", (budget.app, second, spent))
        return None

    def _one(self, group: operations.Group, publication: interface.Publication) -> interface.Receipt:
        if publication.idempotency_key is not None and (known := self._known(group, publication)) is not None:
            return known
        position = None
        if publication.retention is not None:
            position = group.streams.advance(publication.app, publication.channel, publication.retention)
        entry_id = group.log(
            publication.kind,
            publication.app,
            publication.channel,
            publication.body,
            offset=position and position.offset,
            user_id=publication.user_id,
            exclude=publication.exclude,
        )
        if publication.cache_seconds is not None:
            group.cursor.execute(
                "INSERT OR REPLACE INTO cache VALUES (?, ?, ?, ?)",
                (
                    publication.app,
                    publication.channel,
                    publication.body,
                    group.now_ms // 1000 + publication.cache_seconds,
                ),
            )
        if publication.idempotency_key is not None:
            epoch, offset = position or (None, None)
            expires_s = group.now_ms // 1000 + interface.IDEMPOTENCY_SECONDS
            group.cursor.execute(
                "INSERT OR REPLACE INTO idempotency VALUES (?, ?, ?, ?, ?, ?, ?)",
                (publication.app, publication.channel, publication.idempotency_key, entry_id, epoch, offset, expires_s),
            )
        return interface.Receipt(entry_id, position, duplicate=False)

    def _known(self, group: operations.Group, publication: interface.Publication) -> interface.Receipt | None:
        rows = group.cursor.execute(
            'SELECT id, epoch, "offset" FROM idempotency WHERE app = ? AND channel = ? AND key = ? AND expires_s > ?',
            (publication.app, publication.channel, publication.idempotency_key, group.now_ms // 1000),
        ).fetchall()
        if not rows:
            return None
        entry_id, epoch, offset = rows[0]
        position = None if epoch is None else interface.Position(epoch, offset)
        return interface.Receipt(entry_id, position, duplicate=True)


class AwaitedAppend(Append):
    """For a coroutine: settles a future on its loop."""

    __slots__ = ("future", "loop")

    def __init__(
        self,
        publications: Sequence[interface.Publication],
        loop: AbstractEventLoop,
        budget: interface.Budget | None = None,
    ) -> None:
        super().__init__(publications, budget)
        self.loop = loop
        self.future: Future[list[interface.Receipt]] = loop.create_future()

    def settle(self, error: errors.EngineError | None) -> None:
        if self.future.done():
            return  # the caller was cancelled: nobody waits
        failure = error or self.refused
        if failure is None:
            self.future.set_result(self.receipts)
        else:
            self.future.set_exception(failure)


class PostedAppend(Append):
    """For who only wants to hear of a failure: a third of the cost of a future and its callbacks."""

    __slots__ = ("failed", "loop")

    def __init__(
        self, publication: interface.Publication, loop: AbstractEventLoop, failed: Callable[[str], None]
    ) -> None:
        super().__init__([publication])
        self.loop = loop
        self.failed = failed

    def settle(self, error: errors.EngineError | None) -> None:
        if error is not None:
            self.failed(str(error))


class BlockingAppend(Append):
    """For a thread that waits."""

    __slots__ = ("_end", "error", "settled")

    def __init__(self, publications: Sequence[interface.Publication]) -> None:
        super().__init__(publications)
        self.error: errors.EngineError | None = None
        self.settled = False
        self._end = threading.Lock()  # held until the end: a tenth of the cost of an Event
        self._end.acquire()

    def wait(self, timeout: float) -> bool:
        """Whether it is settled, `timeout` seconds from now at the latest."""
        return self.settled or self._end.acquire(timeout=timeout)

    def settle(self, error: errors.EngineError | None) -> None:
        self.error = error
        self.settled = True
        self._end.release()
