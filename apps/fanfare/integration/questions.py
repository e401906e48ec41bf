"""Asking the log from Django code: in any process of the project, blocking or awaited."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from asgiref.sync import sync_to_async

from fanfare.applications import models, registry
from fanfare.engine import current, interface
from fanfare.integration import application, errors, publishing
from fanfare.protocol import names, refusals

T = TypeVar("T")

Application = models.Application | str | int | None
Question = Callable[[interface.Queries], T]


def ask(name: str, app: Application, question: Callable[[registry.Application], Question[T]]) -> T:
    """The answer to what `question` asks about an application. `name`: of the function that was called.

    Raises NoApplication, EngineUnavailable, what `question` raises, and CalledOnEventLoop.
    """
    publishing.refuse_event_loop(name, f"a{name}")
    return _answer(question(application.resolve(app)))


async def aask(app: Application, question: Callable[[registry.Application], Question[T]]) -> T:
    """`ask` for coroutines."""
    asked = await sync_to_async(lambda: question(application.resolve(app)))()  # the database, in this context's thread
    return await sync_to_async(_answer, thread_sensitive=False)(asked)  # the log, in another one


def checked(channel: str, limits: registry.Limits) -> str:
    """Raises InvalidName for what can be no channel: a wrong name must not look like an empty channel."""
    try:
        names.check_publishable_channel(channel, limits.max_channel_name)
    except refusals.InvalidName as error:
        raise errors.InvalidName(str(error)) from error
    return channel


def _answer(question: Question[T]) -> T:
    with current.current().questions() as questions:
        return question(questions)
