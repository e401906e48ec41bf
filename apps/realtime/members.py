"""Who somebody is in a presence channel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from apps.applications import registry
from apps.realtime import encoding, errors


@dataclass(frozen=True, slots=True)
class Member:
    """What a rule answers to say who joins: `id` tells people apart, everybody in the channel sees `info`.

    Use it for visitors who have no account, or to be somebody else than the signed-in user.
    """

    id: str | int
    info: Mapping[str, Any] | None = None


def channel_data(member: Member, limits: registry.Limits) -> str:
    """The member as the JSON text that is signed and sent: `{"user_id": "42", "user_info": {…}}`.

    Raises InvalidAnswer if the server would refuse it: the id is empty or too long, the info has no JSON form or is too
    large.
    """
    if isinstance(member.id, bool) or not isinstance(member.id, str | int):
        raise errors.InvalidAnswer(f"A member's id is a str or an int, not {type(member.id).__name__}.")
    user_id = str(member.id)
    if not 1 <= len(user_id) <= limits.max_user_id:
        raise errors.InvalidAnswer(
            f"A member's id has 1 to {limits.max_user_id} characters; this one has {len(user_id)}."
        )
    if member.info is not None and not isinstance(member.info, Mapping):
        raise errors.InvalidAnswer(f"A member's info is a dict or None, not {type(member.info).__name__}.")
    data: dict[str, Any] = {"user_id": user_id}
    if member.info is not None:
        data["user_info"] = dict(member.info)
    try:
        text = encoding.json_text(data)
    except TypeError as error:
        raise errors.InvalidAnswer(f"The info of member {user_id!r} has no JSON form: {error}.") from error
    size = len(text.encode())
    if size > limits.max_member_bytes:
        raise errors.InvalidAnswer(
            f"Member {user_id!r} has {size} bytes of id and info; the application allows {limits.max_member_bytes}."
        )
    return text
