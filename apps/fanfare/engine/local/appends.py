"""Write operations: publications."""

from __future__ import annotations

from asyncio import AbstractEventLoop, Future
from collections.abc import Callable, Sequence

from fanfare.engine import errors, interface
from fanfare.engine.local.transactions import BlockingOp, Transaction, WriteOp

_KIND = interface.Publication._fields.index("kind")
_NOTHING = (None,) * (len(interface.Publication._fields) - _KIND - 1)  # a publication without any option


class Append(WriteOp):
    """Publications, all or none."""

    __slots__ = ("budget", "publications", "receipts", "refused")

    def __init__(self, publications: Sequence[interface.Publication], budget: interface.Budget | None = None) -> None:
        super().__init__()  # of the other base, if there is one
        self.publications = publications
        self.budget = budget
        self.receipts: list[interface.Receipt] = []
        self.refused: errors.EngineError | None = None

    def run(self, transaction: Transaction) -> None:
        self.receipts = []
        self.refused = transaction.full if self.publications else None
        if self.refused is None and self.budget is not None:
            self.refused = self._spend(transaction, self.budget)
        if self.refused is None:
            for publication in self.publications:
                self.receipts.append(self._append(transaction, publication))

    def plain(self) -> interface.Publication | None:
        if self.budget is not None or len(self.publications) != 1:
            return None
        publication = self.publications[0]
        return publication if publication[_KIND + 1 :] == _NOTHING else None

    def appended(self, entry_id: int) -> None:
        self.receipts = [interface.Receipt(None, False, entry_id)]
        self.refused = None

    def _spend(self, transaction: Transaction, budget: interface.Budget) -> errors.OverBudget | None:
        """Count these publications into this second, unless they are too many for it."""
        second = transaction.now_ms // 1000
        rows = transaction.cursor.execute(
            "SELECT spent FROM budgets WHERE app = ? AND second = ?", (budget.app, second)
        ).fetchall()
        spent = (rows[0][0] if rows else 0) + len(self.publications)
        if spent > budget.per_second:
            return errors.OverBudget(budget.per_second, spent)
        transaction.cursor.execute("INSERT OR REPLACE INTO budgets VALUES (?, ?, ?)", (budget.app, second, spent))
        return None

    def _append(self, transaction: Transaction, publication: interface.Publication) -> interface.Receipt:
        if publication.idempotency_key is not None and (known := self._known(transaction, publication)) is not None:
            return known
        position = None
        if publication.retention is not None:
            position = transaction.advance(publication.app, publication.channel, publication.retention)
        transaction.log(
            publication.kind,
            publication.app,
            publication.channel,
            publication.body,
            offset=position and position.offset,
            user_id=publication.user_id,
            exclude=publication.exclude,
        )
        if publication.cache_seconds is not None:
            expires_s = transaction.now_ms // 1000 + publication.cache_seconds
            transaction.cursor.execute(
                "INSERT OR REPLACE INTO cache VALUES (?, ?, ?, ?)",
                (publication.app, publication.channel, publication.body, expires_s),
            )
        if publication.idempotency_key is not None:
            expires_s = transaction.now_ms // 1000 + interface.IDEMPOTENCY_SECONDS
            epoch, offset = position or (None, None)
            transaction.cursor.execute(
                "INSERT OR REPLACE INTO idempotency VALUES (?, ?, ?, ?, ?, ?)",
                (publication.app, publication.channel, publication.idempotency_key, epoch, offset, expires_s),
            )
        return interface.Receipt(position, False, transaction.top)

    def _known(self, transaction: Transaction, publication: interface.Publication) -> interface.Receipt | None:
        rows = transaction.cursor.execute(
            'SELECT epoch, "offset" FROM idempotency WHERE app = ? AND channel = ? AND key = ? AND expires_s > ?',
            (publication.app, publication.channel, publication.idempotency_key, transaction.now_ms // 1000),
        ).fetchall()
        if not rows:
            return None
        epoch, offset = rows[0]
        return interface.Receipt(None if epoch is None else interface.Position(epoch, offset), duplicate=True)


class AwaitedAppend(Append):
    """For a coroutine: settles a future on its loop."""

    __slots__ = ("future", "loop")

    is_awaited = True

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
            return  # the caller was cancelled
        failure = error or self.refused
        if failure is None:
            self.future.set_result(self.receipts)
        else:
            self.future.set_exception(failure)


class CalledAppend(Append):
    """For a callback: the answer and the delivery happen in the turn of the loop that commits."""

    __slots__ = ("loop", "then")

    is_awaited = True

    def __init__(
        self,
        publications: Sequence[interface.Publication],
        loop: AbstractEventLoop,
        then: interface.Appended,
        budget: interface.Budget | None = None,
    ) -> None:
        # Not `super().__init__`: two calls less for each request.
        self.publications = publications
        self.budget = budget
        self.receipts = []
        self.refused = None
        self.loop = loop
        self.then = then

    def settle(self, error: errors.EngineError | None) -> None:
        failure = error or self.refused
        self.then(self.receipts if failure is None else (), failure)


class PostedAppend(Append):
    """For a caller that needs failures only: a third of the cost of a future and its callbacks."""

    __slots__ = ("failed", "loop")

    is_awaited = True

    def __init__(
        self, publication: interface.Publication, loop: AbstractEventLoop, failed: Callable[[str], None]
    ) -> None:
        super().__init__([publication])
        self.loop = loop
        self.failed = failed

    def settle(self, error: errors.EngineError | None) -> None:
        failure = error or self.refused
        if failure is not None:
            self.failed(str(failure))


class BlockingAppend(Append, BlockingOp):
    """For a thread that waits."""
