"""How the sockets of a worker subscribe, leave and are admitted: each waits until its write is committed."""

from __future__ import annotations

import collections
from typing import Final

from fanfare.engine import errors, interface, leaves
from fanfare.engine.postgres import operations
from fanfare.engine.postgres.counts import SubscriberCounts
from fanfare.engine.postgres.reader import Reader
from fanfare.engine.postgres.writer import Writer

MISS_SECONDS: Final = 3600


class Subscriptions:
    """A leave whose write failed is repeated by `repeat_leaves`."""

    def __init__(
        self, writer: Writer, reader: Reader, counts: SubscriberCounts, counters: collections.Counter[str]
    ) -> None:
        self._writer = writer
        self._reader = reader
        self._counts = counts
        self._leaves = leaves.Leaves(counters)
        self._is_stopped = False

    def stop(self) -> None:
        self._is_stopped = True

    def attach(self, wanted: interface.SubscribeRequest, ready: interface.Ready) -> None:
        if wanted.cached:
            ready = self._noting_misses(wanted, ready)
        if wanted.history is not None:
            ready = self._opening_streams(wanted, ready)
        if not wanted.durable and wanted.member is None:
            self._reader.settle(wanted, ready)
            return
        self._counts.write()
        self._leaves.joined((wanted.app, wanted.channel, wanted.socket_id))
        operation = operations.Operation("touch")
        if wanted.member is not None:
            operation = operations.Operation(
                "join",
                wanted.app,
                wanted.channel,
                user=wanted.member.user_id,
                exclude=wanted.member.info,
                size=wanted.member_limit,
                key=wanted.socket_id,
            )

        def settled(rows: dict[int, operations.Row], error: errors.EngineError | None) -> None:
            if error is not None:
                ready(interface.Refused("engine_unavailable", str(error)))
            elif wanted.member is not None and rows[0].flag:
                ready(interface.too_many_members(rows[0].limit or 0, rows[0].actual or 0))
            elif self._is_stopped:
                ready(interface.Refused("engine_unavailable", "The worker is closing"))
            else:
                self._reader.settle(wanted, ready)

        self._writer.submit(operations.Call([operation], settled))

    def _noting_misses(self, wanted: interface.SubscribeRequest, ready: interface.Ready) -> interface.Ready:
        def answered(answer: interface.SubscribeResult | interface.Refused) -> None:
            if isinstance(answer, interface.SubscribeResult) and answer.cached is None:
                operation = operations.Operation("miss", wanted.app, wanted.channel, n=MISS_SECONDS)
                self._writer.submit(operations.Call([operation]))
            ready(answer)

        return answered

    def _opening_streams(self, wanted: interface.SubscribeRequest, ready: interface.Ready) -> interface.Ready:
        """A stream that was never written to has no epoch, and its subscribers could not recover: create it and ask
        again."""

        def answered(answer: interface.SubscribeResult | interface.Refused) -> None:
            replayed = answer.replayed if isinstance(answer, interface.SubscribeResult) else None
            if replayed is None or replayed.position is not None:
                ready(answer)
                return

            def opened(_rows: dict[int, operations.Row], error: errors.EngineError | None) -> None:
                if error is not None:
                    ready(interface.Refused("engine_unavailable", str(error)))
                else:
                    self._reader.settle(wanted, answered)

            self._writer.submit(operations.Call([operations.Operation("stream", wanted.app, wanted.channel)], opened))

        return answered

    def leave(self, key: leaves.Key) -> None:
        app, channel, socket_id = key
        settled = self._leaves.begin(key)
        operation = operations.Operation("leave", app, channel, key=socket_id)
        self._writer.submit(operations.Call([operation], lambda _rows, error: settled(error is None)))

    def repeat_leaves(self) -> None:
        for key in self._leaves.failed():
            self.leave(key)

    def admit(self, app: str, limit: int, ready: interface.Ready) -> None:
        self._counts.write()

        def settled(rows: dict[int, operations.Row], error: errors.EngineError | None) -> None:
            if error is not None:
                ready(interface.Refused("engine_unavailable", str(error)))
            elif rows[0].flag:
                ready(interface.too_many_connections(limit, rows[0].actual or 0))
            else:
                ready(interface.SubscribeResult())

        self._writer.submit(operations.Call([operations.Operation("admit", app, n=limit)], settled))
