"""May this socket subscribe to this channel, and as whom? Answered from the subscribe message alone."""

from __future__ import annotations

from typing import Any

from apps.applications import registry
from apps.engine import interface
from apps.pusher import errors, members, names, signatures


def authorize(
    application: registry.Application, socket_id: str, channel: str, data: dict[str, Any]
) -> interface.Member | None:
    """The member that joins a presence channel, None for any other. Raises SubscriptionRefused.

    `data` is that of `pusher:subscribe`: `auth` and `channel_data`, as the application's server gave them to the
    client. On public channels both are ignored: pusher-js sends an empty `auth` there.
    """
    _check_name(channel, application.limits.max_channel_name)
    type_ = names.type_of(channel)
    if type_ is names.Type.PUBLIC:
        return None
    auth = _text(data, "auth") or ""
    channel_data = _text(data, "channel_data")
    if type_ is names.Type.PRESENCE and channel_data is None:
        raise errors.Unauthorized("A presence channel needs channel_data with a user_id", reason="invalid_member")
    signatures.check_subscription(
        auth, application.key, application.secret, socket_id=socket_id, channel=channel, channel_data=channel_data
    )
    if type_ is names.Type.PRESENCE and channel_data is not None:
        return members.parse(channel_data, application.limits)
    return None


def _check_name(channel: str, limit: int) -> None:
    try:
        names.check_channel(channel, limit)
    except errors.NameTooLong as error:
        raise errors.LimitReached(error.message, code=errors.UNAUTHORIZED, reason=error.reason) from None
    except errors.InvalidName as error:
        raise errors.SubscriptionRefused(
            error.message,
            code=errors.UNAUTHORIZED,
            kind="InvalidChannel",
            status=errors.UNAUTHORIZED,
            reason=error.reason,
        ) from None


def _text(data: dict[str, Any], name: str) -> str | None:
    """None where it is absent. The signature covers characters, so an object in place of its text cannot be right."""
    value = data.get(name)
    if value is None or isinstance(value, str):
        return value
    raise errors.Unauthorized(
        f"{name} must be a string", reason="invalid_member" if name == "channel_data" else "no_auth"
    )
