"""The number of users of a channel, kept as they join and leave, always equals a full count."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import sqlite3
import tempfile
from pathlib import Path
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from fanfare.engine import interface
from fanfare.engine.local import paths, presence, schema, transactions
from tests.unit.engine.workers import APP

CHANNELS = ("presence-a", "presence-ab", interface.USERS)
WORKERS = ("w1", "w2")


class Join(NamedTuple):
    worker: str
    channel: str
    user_id: str
    socket_id: str
    limit: int | None


class Leave(NamedTuple):
    channel: str
    socket_id: str


class Death(NamedTuple):
    worker: str


sockets = st.sampled_from(["1.1", "1.2", "1.3", "1.4"])
channels = st.sampled_from(CHANNELS)
joins = st.builds(
    Join,
    st.sampled_from(WORKERS),
    channels,
    st.sampled_from(["ann", "bob", "cid"]),
    sockets,
    st.sampled_from([None, 2]),
)
steps = st.one_of(joins, joins, st.builds(Leave, channels, sockets), st.builds(Death, st.sampled_from(WORKERS)))


@settings(max_examples=60, deadline=None)
@given(groups=st.lists(st.lists(steps, max_size=4), max_size=12), rolled_back=st.integers(0, 11))
def test_number_of_users_equals_a_full_count(groups: list[list[NamedTuple]], rolled_back: int) -> None:
    """In groups of one transaction each, one of which fails as a whole."""
    loop = asyncio.new_event_loop()
    with tempfile.TemporaryDirectory() as folder, contextlib.closing(loop):
        where = paths.LogPaths(Path(folder))
        where.prepare()
        with contextlib.closing(schema.connect(where, create=True)) as connection:
            schema.prepare(connection, where, full_sync=False, high_water=0)
            for number, group in enumerate(groups):
                for step in group:
                    worker = step.worker if isinstance(step, Join) else None
                    transaction = transactions.begin(connection, worker)
                    _operation(loop, step).run(transaction)
                    transaction.finish()
                    connection.execute("ROLLBACK" if number == rolled_back else "COMMIT")
                    _check(connection)


def _operation(loop: asyncio.AbstractEventLoop, step: NamedTuple) -> transactions.WriteOp:
    if isinstance(step, Join):
        member = interface.Member(step.user_id, "null")
        wanted = interface.SubscribeRequest(APP, step.channel, step.socket_id, member=member, member_limit=step.limit)
        return presence.Subscribe(loop, wanted, lambda _: None)
    if isinstance(step, Leave):
        return presence.Leave(loop, APP, step.channel, step.socket_id)
    assert isinstance(step, Death)
    return presence.RemoveWorker(loop, step.worker)


def _check(connection: sqlite3.Connection) -> None:
    slow = dict(connection.execute("SELECT channel, COUNT(DISTINCT user_id) FROM members GROUP BY channel").fetchall())
    assert dict(connection.execute("SELECT channel, users FROM users").fetchall()) == slow
    told: collections.Counter[str] = collections.Counter()
    for kind, channel in connection.execute("SELECT kind, channel FROM log").fetchall():
        told[channel] += {interface.Kind.MEMBER_ADDED: 1, interface.Kind.MEMBER_REMOVED: -1}.get(kind, 0)
    assert +told == collections.Counter(slow)
