"""Queries of the log from Django code, in any process of the project, blocking or awaited."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from asgiref.sync import sync_to_async

from fanfare import errors
from fanfare.applications import registry
from fanfare.engine import interface
from fanfare.integration import publishing, target
from fanfare.protocol import names, refusals

T = TypeVar("T")

Query = Callable[[interface.Queries], T]


def ask(name: str, app: target.App, query: Callable[[registry.Application], Query[T]]) -> T:
    """The answer to a query about an application. `name`: the public function that was called.

    Raises NoApplication, EngineUnavailable, what `query` raises, and CalledOnEventLoop.
    """
    publishing.refuse_event_loop(name, name.replace(".", ".a"))
    return _answer(query(target.application(app)))


async def aask(app: target.App, query: Callable[[registry.Application], Query[T]]) -> T:
    """`ask` for coroutines."""
    asked = await sync_to_async(lambda: query(target.application(app)))()  # the database, in this context's thread
    return await sync_to_async(_answer, thread_sensitive=False)(asked)  # the log, in another one


def check_channel(channel: str, limits: registry.Limits) -> None:
    """Raises InvalidName for an invalid name, which must not look like an empty channel."""
    if not isinstance(channel, str):
        raise errors.InvalidName(f"A channel is a str, such as 'orders', not {type(channel).__name__}: {channel!r}.")
    try:
        names.check_publishable_channel(channel, limits.max_channel_name)
    except refusals.InvalidName as error:
        raise errors.InvalidName(str(error)) from error


def _answer(query: Query[T]) -> T:
    with target.engine().queries() as queries:
        return query(queries)
