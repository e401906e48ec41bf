"""Authorization of a subscribe: whether this socket may subscribe to this channel, and as which member.

The message alone decides. Its `auth` is a signature of the application's server, or a capability token
(`fanfare.protocol.capabilities`). With a signature the server wrote the member of a presence channel into
`channel_data` and signed it; where there is none, the member is the signed-in user (`fanfare.protocol.sign_in`).
With a token the member is the token's user.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson

from fanfare.applications import registry
from fanfare.engine import interface
from fanfare.protocol import capabilities, names, refusals, signatures


class Authorized(NamedTuple):
    """`member`: joins a presence channel; None for any other. `capability`: of a subscribe with a token."""

    member: interface.Member | None = None
    capability: capabilities.Capability | None = None


_WITHOUT_MEMBER = Authorized()


def authorize(
    application: registry.Application,
    socket_id: str,
    channel: str,
    data: Mapping[str, Any],
    *,
    user: interface.Member | None,
    now: float,
) -> Authorized:
    """Raises SubscriptionRefused.

    `data` is that of `pusher:subscribe`: `auth` and `channel_data` from the application's server. On public channels
    both are ignored: pusher-js sends an empty `auth` there. `user`: the one that the connection is signed in as. `now`:
    Unix time.
    """
    if channel.startswith(names.USER_PREFIX):
        _check_is_own(channel, user)
        return _WITHOUT_MEMBER
    _check_name(channel, application.limits.max_channel_name)
    type_ = names.type_of(channel)
    if type_ is names.Type.PUBLIC:
        return _WITHOUT_MEMBER
    auth = _text(data, "auth") or ""
    channel_data = _text(data, "channel_data")
    if capabilities.is_token(auth):
        return _by_token(application, channel, auth, channel_data, now)
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
        return _WITHOUT_MEMBER
    if channel_data is not None:
        return Authorized(parse_member(channel_data, application.limits))
    if user is not None:
        _check_info(user.info, application.limits)
    return Authorized(user)


def _by_token(
    application: registry.Application, channel: str, token: str, channel_data: str | None, now: float
) -> Authorized:
    """`channel_data` is for pusher-js, which reads its own id from it; it is not signed."""
    try:
        capability = capabilities.verify(token, application.secrets(now), now)
    except refusals.InvalidToken as error:
        raise refusals.Unauthorized(error.message, reason=error.reason) from None
    if not capability.covers(channel):
        raise refusals.Unauthorized(f"The token does not grant {channel}", reason="channel_not_granted")
    is_presence = names.is_presence(channel)
    needed = (capabilities.SUBSCRIBE, capabilities.PRESENCE) if is_presence else (capabilities.SUBSCRIBE,)
    for right in needed:
        if right not in capability.rights:
            raise refusals.Unauthorized(f'The token does not have the right "{right}"', reason="right_not_granted")
    if not is_presence:
        return Authorized(capability=capability)
    user_id = text_id(capability.user_id)
    if user_id is None or len(user_id) > application.limits.max_user_id:
        raise refusals.Unauthorized(
            f"A member's token has a user in `sub`, of 1 to {application.limits.max_user_id} characters without NUL",
            reason="invalid_member",
        )
    if channel_data is not None and parse_member(channel_data, application.limits).user_id != user_id:
        raise refusals.Unauthorized("The user_id of the channel_data is not the token's user", reason="other_member")
    _check_info(capability.info, application.limits)
    return Authorized(interface.Member(user_id, capability.info), capability)


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
    """None if absent. The signature covers the text, so an object cannot be valid."""
    value = data.get(name)
    if value is None or isinstance(value, str):
        return value
    raise refusals.Unauthorized(
        f"{name} must be a string", reason="invalid_member" if name == "channel_data" else "no_auth"
    )


# -- members -----------------------------------------------------------------------------------------------------------


def parse_member(channel_data: str, limits: registry.Limits) -> interface.Member:
    """The member in `channel_data`: a JSON object with `user_id` and optionally `user_info`.

    Raises Unauthorized or LimitReached.
    """
    size = len(channel_data.encode(errors="surrogatepass"))
    if size > limits.max_member_bytes:
        raise refusals.LimitReached(
            f"The channel_data has {size} bytes; {limits.max_member_bytes} are allowed",
            code=refusals.CLIENT_EVENT_REJECTED,
            reason="member_too_big",
        )
    try:
        data = orjson.loads(channel_data)
    except orjson.JSONDecodeError as error:
        raise refusals.Unauthorized(f"The channel_data is not JSON: {error}", reason="invalid_member") from None
    if not isinstance(data, dict):
        raise refusals.Unauthorized("The channel_data must be a JSON object with a user_id", reason="invalid_member")
    user_id = text_id(data.get("user_id"))
    if user_id is None:
        raise refusals.Unauthorized(
            "The channel_data needs a user_id that is an integer, or a string of one or more characters without NUL",
            reason="invalid_member",
        )
    if len(user_id) > limits.max_user_id:
        raise refusals.LimitReached(
            f"The user_id has {len(user_id)} characters; {limits.max_user_id} are allowed",
            code=refusals.CLIENT_EVENT_REJECTED,
            reason="user_id_too_long",
        )
    return interface.Member(user_id, _info(data.get("user_info")))


def text_id(value: Any) -> str | None:
    """The id of a user, as text: a user may be 10 for one backend and "10" for another. None if it is not an id.

    Without NUL, which PostgreSQL cannot store in a text.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) and value and "\0" not in value else None


def _check_info(info: str, limits: registry.Limits) -> None:
    """Raise LimitReached if this user_info (JSON text) of a signed-in user is too large for a presence channel."""
    size = len(info.encode())
    if size > limits.max_member_bytes:
        raise refusals.LimitReached(
            f"The user_info has {size} bytes; {limits.max_member_bytes} are allowed in a presence channel",
            code=refusals.CLIENT_EVENT_REJECTED,
            reason="member_too_big",
        )


def _info(value: Any) -> str:
    try:
        return orjson.dumps(value).decode()
    except orjson.JSONEncodeError:  # orjson parses deeper nesting than it serializes
        raise refusals.Unauthorized("The user_info is nested too deeply", reason="invalid_member") from None
