"""How the sockets of a worker subscribe, leave and are admitted: each waits for the answer of the store."""

from __future__ import annotations

import collections
from collections.abc import Callable

from fanfare.engine import errors, interface, leaves
from fanfare.engine.redis import operations
from fanfare.engine.redis.counts import SubscriberCounts
from fanfare.engine.redis.partition import Partition


class Subscriptions:
    """A leave whose write failed is repeated by `repeat_leaves`."""

    def __init__(
        self,
        of: Callable[[str, str], Partition],
        subscribers: SubscriberCounts,
        counters: collections.Counter[str],
    ) -> None:
        self._of = of
        self._subscribers = subscribers
        # By partition, application and socket: the users that are signed in here.
        self._users: dict[Partition, dict[tuple[str, str], interface.Member]] = collections.defaultdict(dict)
        self._leaves = leaves.Leaves(counters)

    def attach(self, wanted: interface.SubscribeRequest, ready: interface.Ready) -> None:
        if wanted.durable:
            self._subscribers.write()
        partition = self._of(wanted.app, wanted.channel)
        member = wanted.member
        todo: list[operations.Operation] = []
        if member is not None:
            self._leaves.joined((wanted.app, wanted.channel, wanted.socket_id))
            todo.append(_join(wanted.app, wanted.channel, wanted.socket_id, member, wanted.member_limit))
            if wanted.channel == interface.USERS:
                self._users[partition][wanted.app, wanted.socket_id] = member
        wants = operations.wants(wanted)

        def settled(answer: operations.Answer | None, error: errors.EngineError | None) -> None:
            try:
                ready(_result(wanted, answer, error))
            except errors.EngineError as refused:
                ready(interface.Refused("engine_unavailable", str(refused)))

        # A subscriber that reads nothing gets a want too: it must wait for the barrier, and after a gap.
        partition.calls.submit(operations.Call(todo, settled, wants=wants or [("n", "")]))

    def leave(self, key: leaves.Key) -> None:
        app, channel, socket_id = key
        partition = self._of(app, channel)
        if channel == interface.USERS:
            self._users[partition].pop((app, socket_id), None)
        settled = self._leaves.begin(key)
        operation = ("l", operations.identity(app, channel), app, channel, socket_id)
        call = operations.Call([operation], lambda _answer, error: settled(error is None), frees=True)
        partition.calls.submit(call)

    def repeat_leaves(self) -> None:
        for key in self._leaves.failed():
            self.leave(key)

    def repeat_users(self, partition: Partition) -> None:
        """The store may have lost the users. Sockets without a channel are signed in, and the hub closes none of them
        after a gap."""
        for (app, socket_id), member in self._users[partition].items():
            joining = _join(app, interface.USERS, socket_id, member, None)
            partition.calls.submit(operations.Call([joining], operations.ignore))

    def admit(self, app: str, limit: int, ready: interface.Ready) -> None:
        partition = self._of(app, interface.CONNECTIONS)
        self._subscribers.write_of(partition)

        def settled(answer: operations.Answer | None, error: errors.EngineError | None) -> None:
            if answer is None or isinstance(answer.results[0], Exception):
                ready(interface.Refused("engine_unavailable", str(error or answer)))
            elif answer.results[0] != 0:
                ready(interface.too_many_connections(*answer.results[0]))
            else:
                ready(interface.SubscribeResult())

        operation = ("q", operations.identity(app, interface.CONNECTIONS), limit)
        partition.calls.submit(operations.Call([operation], settled))


def _join(app: str, channel: str, socket_id: str, member: interface.Member, limit: int | None) -> operations.Operation:
    name = operations.identity(app, channel)
    return ("j", name, app, channel, socket_id, member.user_id, member.info, False if limit is None else limit)


def _result(
    wanted: interface.SubscribeRequest, answer: operations.Answer | None, error: errors.EngineError | None
) -> interface.SubscribeResult | interface.Refused:
    """Raises EngineUnavailable if a part failed."""
    if answer is None:
        return interface.Refused("engine_unavailable", str(error))
    for result in answer.results:
        operations.check(result)
        if result != 0:
            return interface.too_many_members(*result)
    values = {want[0]: operations.value_of(want, answer, wanted) for want in operations.wants(wanted)}
    return interface.SubscribeResult(
        members=values.get("m", ()),
        cached=values.get("c"),
        subscribers=values.get("n", 0),
        online=tuple(user for user, is_online in zip(wanted.watch, values.get("o", ()), strict=False) if is_online),
        replayed=values.get("h"),
        streams=values.get("t", ()),
    )
