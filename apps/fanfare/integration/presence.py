"""Members, subscribers and signed-in users of the whole deployment, in any process of the project: a view, a task.

    from fanfare import presence

    presence.is_online(user)                     whether a user is signed in on a connection
    presence.members("presence-room")            the members of a presence channel
    presence.subscriber_count("orders")          the number of connections on a channel
    presence.disconnect_user(user)               close all connections of a user
    presence.update_member("presence-room", …)   a member's new info: a status, a cursor
    with presence.member("presence-room", …):    a member without a connection, such as an agent

`member` has the form `async with` too. The others have async twins: `ais_online`, `amembers`, `asubscriber_count`,
`adisconnect_user`, `aupdate_member`. The blocking form raises CalledOnEventLoop in a coroutine. All of them raise
NoApplication, and EngineUnavailable if the log cannot be read or written, so that a failure never looks like an empty
channel.
"""

from __future__ import annotations

import time
from typing import Any

import orjson
from asgiref.sync import sync_to_async
from django.db import DEFAULT_DB_ALIAS

from fanfare import errors
from fanfare.applications import registry
from fanfare.engine import interface
from fanfare.integration import after_commit, member_leases, publishing, queries, target, users
from fanfare.integration.member_leases import member
from fanfare.integration.users import Member
from fanfare.protocol import names, termination

__all__ = [
    "Member",
    "adisconnect_user",
    "ais_online",
    "amembers",
    "asubscriber_count",
    "aupdate_member",
    "disconnect_user",
    "is_online",
    "member",
    "members",
    "subscriber_count",
    "update_member",
]


# -- users -------------------------------------------------------------------------------------------------------------


def is_online(user: users.User, *, app: target.App = None) -> bool:
    """Whether a user is signed in on at least one connection, in any worker.

    `user`: a saved user, its primary key, or a `UserData` with another id. `app`: an application or its id, by default
    the project's default application. A page signs in with `pusher.signin()`; a member of a presence channel who did
    not sign in does not count.

    Raises InvalidUser, NoApplication, EngineUnavailable, CalledOnEventLoop.
    """
    return queries.ask("presence.is_online", app, lambda application: _is_online(application, user))


async def ais_online(user: users.User, *, app: target.App = None) -> bool:
    """`is_online` for coroutines."""
    return await queries.aask(app, lambda application: _is_online(application, user))


def disconnect_user(
    user: users.User,
    *,
    reconnect: bool = False,
    app: target.App = None,
    on_commit: bool = True,
    using: str = DEFAULT_DB_ALIAS,
) -> None:
    """Close every connection of a user, WebSocket and SSE, in every worker.

    `user`, `app`: as for `is_online`. The clients stay disconnected until the page connects again; with
    `reconnect=True` they reconnect at once and ask the auth endpoints anew. The connections are closed when the
    surrounding transaction of the database `using` commits, or at once with `on_commit=False`.

    Raises InvalidUser, NoApplication, EngineUnavailable, CalledOnEventLoop. Source: Pusher Channels, "Terminating user
    connections".
    """
    publishing.refuse_event_loop("presence.disconnect_user", "presence.adisconnect_user")
    after_commit.send(_termination(user, reconnect, app), on_commit, using)


async def adisconnect_user(
    user: users.User,
    *,
    reconnect: bool = False,
    app: target.App = None,
    on_commit: bool = True,
    using: str = DEFAULT_DB_ALIAS,
) -> None:
    """`disconnect_user` for coroutines."""
    await after_commit.asend(lambda: _termination(user, reconnect, app), on_commit, using)


def _is_online(application: registry.Application, user: users.User) -> queries.Query[bool]:
    user_id = users.user_id(user)
    return lambda ask: bool(ask.present(application.id, interface.USERS, [user_id]))


def _termination(user: users.User, reconnect: bool, app: target.App) -> list[interface.Publication]:
    application_id = target.application(app).id
    return termination.publications(application_id, users.user_id(user), reconnect=reconnect, now=time.time())


# -- channels ----------------------------------------------------------------------------------------------------------


def members(channel: str, *, app: target.App = None) -> list[Member]:
    """The distinct members of a presence channel, in the order in which they joined.

    Each is a `Member`: `id` is a str, `info` is a dict or None as it was signed. `app`: an application or its id, by
    default the project's default application.

    Raises InvalidName for another channel, NoApplication, EngineUnavailable, CalledOnEventLoop.
    """
    return queries.ask("presence.members", app, lambda application: _members(application, channel))


async def amembers(channel: str, *, app: target.App = None) -> list[Member]:
    """`members` for coroutines."""
    return await queries.aask(app, lambda application: _members(application, channel))


def subscriber_count(channel: str, *, app: target.App = None) -> int:
    """The number of connections that are subscribed to a channel, in all workers; 0 for an empty channel.

    `app`: an application or its id, by default the project's default application.

    Raises InvalidName, NoApplication, EngineUnavailable, CalledOnEventLoop.
    """
    return queries.ask("presence.subscriber_count", app, lambda application: _subscriber_count(application, channel))


async def asubscriber_count(channel: str, *, app: target.App = None) -> int:
    """`subscriber_count` for coroutines."""
    return await queries.aask(app, lambda application: _subscriber_count(application, channel))


def update_member(channel: str, user: users.User, info: Any, *, app: target.App = None) -> bool:
    """Give a member of a presence channel a new info, without leaving. False: the user is no member.

    The other members get the event `fanfare:member_updated` with `user_id` and `user_info`. `info`: JSON, at most
    2,048 bytes (`max_member_bytes`). A page that subscribes again is a member with the info of its rule again.

    Raises InvalidName, InvalidUser, UnencodableData, DataTooLarge, NoApplication, EngineUnavailable, CalledOnEventLoop.
    """
    publishing.refuse_event_loop("presence.update_member", "presence.aupdate_member")
    return _update_member(target.application(app), channel, users.user_id(user), info)


async def aupdate_member(channel: str, user: users.User, info: Any, *, app: target.App = None) -> bool:
    """`update_member` for coroutines."""
    application = await sync_to_async(target.application)(app)
    return await sync_to_async(_update_member, thread_sensitive=False)(application, channel, users.user_id(user), info)


def _update_member(application: registry.Application, channel: str, user_id: str, info: Any) -> bool:
    queries.check_channel(channel, application.limits)
    if not names.is_presence(channel):
        raise errors.InvalidName(f"{channel!r} is not a presence channel, so it has no members.")
    text = member_leases.member_info(application, channel, info)
    return target.engine().update_member(application.id, channel, user_id, text)


def _members(application: registry.Application, channel: str) -> queries.Query[list[Member]]:
    queries.check_channel(channel, application.limits)
    if not names.is_presence(channel):
        raise errors.InvalidName(
            f"{channel} is not a presence channel, so it has no members: its name begins with 'presence-'. "
            "presence.subscriber_count() counts the connections of any channel."
        )
    return lambda ask: [Member(one.user_id, orjson.loads(one.info)) for one in ask.members(application.id, channel)]


def _subscriber_count(application: registry.Application, channel: str) -> queries.Query[int]:
    queries.check_channel(channel, application.limits)
    return lambda ask: ask.channel(application.id, channel).subscriptions
