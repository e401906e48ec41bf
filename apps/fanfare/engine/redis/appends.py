"""Publications of a worker's own event loop. Those of one partition are written together or not at all."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Sequence

from fanfare.engine import errors, interface
from fanfare.engine.redis import operations
from fanfare.engine.redis.partition import Partition


class Appends:
    def __init__(self, of: Callable[[str, str], Partition]) -> None:
        self._of = of
        self._loop = asyncio.get_running_loop()

    def append(
        self, publications: Sequence[interface.Publication], budget: interface.Budget | None
    ) -> asyncio.Future[list[interface.Receipt]]:
        """The future raises OverBudget, EngineUnavailable."""
        done: asyncio.Future[list[interface.Receipt]] = self._loop.create_future()
        if budget is None:
            self._append(publications, done)
            return done

        def granted(answer: operations.Answer | None, error: errors.EngineError | None) -> None:
            if done.done():
                return
            if answer is None:
                done.set_exception(error or errors.EngineUnavailable("Redis did not answer"))
            elif answer.results[0] != 0:
                done.set_exception(errors.OverBudget(*answer.results[0]))
            else:
                self._append(publications, done)

        ask = ("b", budget.app, budget.per_second, len(publications))
        self._of(budget.app, interface.CONNECTIONS).calls.submit(operations.Call([ask], granted))
        return done

    def _append(
        self, publications: Sequence[interface.Publication], done: asyncio.Future[list[interface.Receipt]]
    ) -> None:
        """Those of one partition are one call."""
        calls: dict[Partition, list[int]] = {}
        for index, publication in enumerate(publications):
            calls.setdefault(self._of(publication.app, publication.channel), []).append(index)
        try:
            wanted = [operations.append(publication) for publication in publications]
        except UnicodeEncodeError as error:
            done.set_exception(errors.EngineUnavailable(f"A publication is not Unicode text: {error}"))
            return
        gathered = _Receipts(len(publications), len(calls), done)
        for partition, indexes in calls.items():
            settled = functools.partial(gathered.settled, indexes)
            size = sum(len(publications[index].body) for index in indexes)
            partition.calls.submit(operations.Call([wanted[index] for index in indexes], settled, size=size))
        if not calls:
            done.set_result([])

    def post(self, publication: interface.Publication, failed: Callable[[str], None]) -> None:
        def settled(answer: operations.Answer | None, error: errors.EngineError | None) -> None:
            try:
                if answer is not None:
                    operations.check(answer.results[0])
            except errors.EngineError as refused:
                error = refused
            if error is not None:
                failed(str(error))

        try:
            call = operations.Call([operations.append(publication)], settled, size=len(publication.body))
        except UnicodeEncodeError as error:
            failed(str(error))
        else:
            self._of(publication.app, publication.channel).calls.submit(call)


class _Receipts:
    """The answers of several partitions to one `append`."""

    def __init__(self, count: int, calls: int, done: asyncio.Future[list[interface.Receipt]]) -> None:
        self._receipts: dict[int, interface.Receipt] = {}
        self._count = count
        self._left = calls
        self._failure: errors.EngineError | None = None
        self._done = done

    def settled(
        self, indexes: Sequence[int], answer: operations.Answer | None, error: errors.EngineError | None
    ) -> None:
        self._left -= 1
        try:
            if answer is not None:
                for index, result in zip(indexes, answer.results, strict=True):
                    self._receipts[index] = operations.receipt(result)
        except errors.EngineError as refused:
            error = refused
        self._failure = self._failure or error
        if self._left or self._done.done():
            return
        if self._failure is not None:
            self._done.set_exception(self._failure)
        else:
            self._done.set_result([self._receipts[index] for index in range(self._count)])
