"""Who joins a presence channel: the member that an application's server wrote into `channel_data` and signed.

Where there is none, it is the user as whom the connection is signed in (`fanfare.protocol.users`).
"""

from __future__ import annotations

from typing import Any

import orjson

from fanfare.applications import registry
from fanfare.engine import interface
from fanfare.protocol import refusals


def parse(channel_data: str, limits: registry.Limits) -> interface.Member:
    """The member in `channel_data`: a JSON object with `user_id` (string or integer) and, if it likes, `user_info`.

    The id becomes a string: a user may be 10 for one backend and "10" for another. Raises Unauthorized or LimitReached.
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
    user_id = _user_id(data.get("user_id"))
    if len(user_id) > limits.max_user_id:
        raise refusals.LimitReached(
            f"The user_id has {len(user_id)} characters; {limits.max_user_id} are allowed",
            code=refusals.CLIENT_EVENT_REJECTED,
            reason="user_id_too_long",
        )
    return interface.Member(user_id, _info(data.get("user_info")))


def check_info(info: str, limits: registry.Limits) -> None:
    """Raise LimitReached if this user_info (JSON text) of a signed-in user is too much for a presence channel."""
    size = len(info.encode())
    if size > limits.max_member_bytes:
        raise refusals.LimitReached(
            f"The user_info has {size} bytes; {limits.max_member_bytes} are allowed in a presence channel",
            code=refusals.CLIENT_EVENT_REJECTED,
            reason="member_too_big",
        )


def _user_id(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, str) and value:
        return value
    raise refusals.Unauthorized(
        "The channel_data must have a user_id that is an integer or a string with at least one character",
        reason="invalid_member",
    )


def _info(value: Any) -> str:
    try:
        return orjson.dumps(value).decode()
    except orjson.JSONEncodeError:  # it reads deeper nesting than it writes
        raise refusals.Unauthorized("The user_info is nested too deeply", reason="invalid_member") from None
