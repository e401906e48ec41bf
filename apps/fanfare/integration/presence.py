"""Who is there, in the whole deployment, from any process of the project: a view, a task, a shell.

    from fanfare.integration import presence

    presence.is_online(user)                 whether the user is signed in on any connection
    presence.members("presence-room")        who is in a presence channel, oldest first
    presence.subscribers("orders")           how many connections are on a channel
    presence.disconnect(user)                end all connections of a user

Each has a twin for coroutines, whose name begins with `a`. They raise EngineUnavailable if the log cannot be read or
written, NoApplication if there is none, and InvalidName for what can be no channel. `app` is an application or its id;
by default the project's default application. The answers are right at the instant of the question, give or take what a
worker is just writing.
"""

from __future__ import annotations

import orjson
from asgiref.sync import sync_to_async
from django.db import DEFAULT_DB_ALIAS

from fanfare.applications import registry
from fanfare.engine import interface
from fanfare.integration import application, errors, publishing, questions, users
from fanfare.integration.members import Member
from fanfare.protocol import names, termination

# -- users -----------------------------------------------------------------------------------------------------------


def is_online(user: users.User, *, app: questions.Application = None) -> bool:
    """Whether a user, or the one with this id, is signed in on a connection at least. Raises InvalidUser.

    A page signs in with `pusher.signin()`. Who is only a member of a presence channel is not signed in.
    """
    return questions.ask("is_online", app, lambda target: _is_online(target, user))


async def ais_online(user: users.User, *, app: questions.Application = None) -> bool:
    return await questions.aask(app, lambda target: _is_online(target, user))


def disconnect(
    user: users.User,
    *,
    reconnect: bool = False,
    app: questions.Application = None,
    on_commit: bool = True,
    using: str = DEFAULT_DB_ALIAS,
) -> None:
    """End every connection that is signed in as a user, in every worker. Raises InvalidUser.

    The clients stay away until their pages connect again; with `reconnect` they are back at once, and ask the auth
    endpoints anew. As with `publish`, it happens when the surrounding transaction commits (`on_commit`, `using`).
    """
    publishing.refuse_event_loop("disconnect", "adisconnect")
    command = _termination(user, reconnect, app)
    if not publishing.defer([command], on_commit, using):
        publishing.append([command])


async def adisconnect(
    user: users.User,
    *,
    reconnect: bool = False,
    app: questions.Application = None,
    on_commit: bool = True,
    using: str = DEFAULT_DB_ALIAS,
) -> None:
    def prepared() -> interface.Publication | None:
        command = _termination(user, reconnect, app)
        return None if publishing.defer([command], on_commit, using) else command

    command = await sync_to_async(prepared)()
    if command is not None:
        await sync_to_async(publishing.append, thread_sensitive=False)([command])


def _is_online(target: registry.Application, user: users.User) -> questions.Question[bool]:
    user_id = users.user_id(user)
    return lambda ask: bool(ask.present(target.id, interface.USERS, [user_id]))


def _termination(user: users.User, reconnect: bool, app: questions.Application) -> interface.Publication:
    code = termination.TO_RECONNECT if reconnect else termination.FOR_GOOD
    return interface.Publication(
        app=application.resolve(app).id,
        channel=termination.COMMAND,
        body=termination.body(users.user_id(user), code),
        kind=interface.Kind.CONTROL,
    )


# -- channels --------------------------------------------------------------------------------------------------------


def members(channel: str, *, app: questions.Application = None) -> list[Member]:
    """The distinct users of a presence channel, oldest first: `id` as a string, `info` as it was signed."""
    return questions.ask("members", app, lambda target: _members(target, channel))


async def amembers(channel: str, *, app: questions.Application = None) -> list[Member]:
    return await questions.aask(app, lambda target: _members(target, channel))


def subscribers(channel: str, *, app: questions.Application = None) -> int:
    """How many connections are on a channel; 0 where nobody is."""
    return questions.ask("subscribers", app, lambda target: _subscribers(target, channel))


async def asubscribers(channel: str, *, app: questions.Application = None) -> int:
    return await questions.aask(app, lambda target: _subscribers(target, channel))


def _members(target: registry.Application, channel: str) -> questions.Question[list[Member]]:
    name = questions.checked(channel, target.limits)
    if not names.is_presence(name):
        raise errors.InvalidName(f"{name} is not a presence channel, so it has no members.")
    return lambda ask: [Member(one.user_id, orjson.loads(one.info)) for one in ask.members(target.id, name)]


def _subscribers(target: registry.Application, channel: str) -> questions.Question[int]:
    name = questions.checked(channel, target.limits)
    return lambda ask: ask.channel(target.id, name).subscriptions
