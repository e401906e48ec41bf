"""May this socket subscribe to this channel, and as whom? Answered from the subscribe message alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fanfare.applications import registry
from fanfare.engine import interface
from fanfare.protocol import members, names, refusals, signatures


def authorize(
    application: registry.Application,
    socket_id: str,
    channel: str,
    data: Mapping[str, Any],
    *,
    user: interface.Member | None,
    now: float,
) -> interface.Member | None:
    """The member that joins a presence channel, None for any other. Raises SubscriptionRefused.

    `data` is that of `pusher:subscribe`: `auth` and `channel_data`, as the application's server gave them to the
    client. On public channels both are ignored: pusher-js sends an empty `auth` there. `user`: as whom the connection
    is signed in; that is its member where there is no `channel_data`. `now`: Unix time.
    """
    if channel.startswith(names.USER_PREFIX):
        _check_is_own(channel, user)
        return None
    _check_name(channel, application.limits.max_channel_name)
    type_ = names.type_of(channel)
    if type_ is names.Type.PUBLIC:
        return None
    auth = _text(data, "auth") or ""
    channel_data = _text(data, "channel_data")
    if type_ is names.Type.PRESENCE and channel_data is None and user is None:
        raise refusals.Unauthorized(
            "A presence channel needs channel_data with a user_id, or a connection that is signed in",
            reason="invalid_member",
        )
    signatures.check_subscription(
        auth,
        application.key,
        application.secrets(now),
        socket_id=socket_id,
        channel=channel,
        channel_data=channel_data,
    )
    if type_ is not names.Type.PRESENCE:
        return None
    if channel_data is not None:
        return members.parse(channel_data, application.limits)
    if user is not None:
        members.check_info(user.info, application.limits)
    return user


def _check_is_own(channel: str, user: interface.Member | None) -> None:
    if user is None or channel != names.user_channel(user.user_id):
        raise refusals.Unauthorized(
            f'Only a connection that is signed in as that user may subscribe to "{refusals.quoted(channel)}"',
            reason="other_user",
        )


def _check_name(channel: str, limit: int) -> None:
    try:
        names.check_channel(channel, limit)
    except refusals.NameTooLong as error:
        raise refusals.LimitReached(error.message, code=refusals.UNAUTHORIZED, reason=error.reason) from None
    except refusals.InvalidName as error:
        raise refusals.SubscriptionRefused(
            error.message,
            code=refusals.UNAUTHORIZED,
            kind="InvalidChannel",
            status=refusals.UNAUTHORIZED,
            reason=error.reason,
        ) from None


def _text(data: Mapping[str, Any], name: str) -> str | None:
    """None where it is absent. The signature covers characters, so an object in place of its text cannot be right."""
    value = data.get(name)
    if value is None or isinstance(value, str):
        return value
    raise refusals.Unauthorized(
        f"{name} must be a string", reason="invalid_member" if name == "channel_data" else "no_auth"
    )
