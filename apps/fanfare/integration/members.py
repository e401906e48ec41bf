"""Who somebody is in a presence channel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fanfare.applications import registry
from fanfare.integration import encoding, errors


@dataclass(frozen=True, slots=True)
class Member:
    """What a rule answers to say who joins: `id` tells people apart, everybody in the channel sees `info`.

    Use it for visitors who have no account, or to be somebody else than the signed-in user.
    """

    id: str | int
    info: Mapping[str, Any] | None = None


def of_user(user: Any, answer: Mapping[str, Any] | bool) -> Member:
    """A signed-in user of Django, with the info that was answered; `True` for the usual one."""
    return Member(str(user.pk), answer if isinstance(answer, Mapping) else {"name": str(user)})


def channel_data(member: Member, limits: registry.Limits) -> str:
    """The member as the JSON text that is signed and sent: `{"user_id": "42", "user_info": {…}}`.

    Raises InvalidAnswer if the server would refuse it: the id is empty or too long, the info has no JSON form or is too
    large.
    """
    if isinstance(member.id, bool) or not isinstance(member.id, str | int):
        raise errors.InvalidAnswer(f"A member's id is a str or an int, not {type(member.id).__name__}.")
    user_id = str(member.id)
    data: dict[str, Any] = {"user_id": checked_id(user_id, limits)}
    if member.info is not None:
        data["user_info"] = checked_info(member.info)
    return bounded_text(data, limits.max_member_bytes)


def checked_id(user_id: str, limits: registry.Limits) -> str:
    if not 1 <= len(user_id) <= limits.max_user_id:
        raise errors.InvalidAnswer(
            f"A member's id has 1 to {limits.max_user_id} characters; this one has {len(user_id)}."
        )
    return user_id


def checked_info(info: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(info, Mapping):
        raise errors.InvalidAnswer(f"A member's info is a dict or None, not {type(info).__name__}.")
    return dict(info)


def bounded_text(data: dict[str, Any], limit: int) -> str:
    """JSON of at most `limit` bytes. Raises InvalidAnswer."""
    who = next(iter(data.values()))
    try:
        text = encoding.json_text(data)
    except TypeError as error:
        raise errors.InvalidAnswer(f"The info of member {who!r} has no JSON form: {error}.") from error
    size = len(text.encode())
    if size > limit:
        raise errors.InvalidAnswer(f"Member {who!r} has {size} bytes of id and info; the application allows {limit}.")
    return text
