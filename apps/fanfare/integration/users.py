"""Who is meant by a user: an object with a primary key, or the id itself."""

from __future__ import annotations

import uuid
from typing import Any

from fanfare.integration import errors

User = Any
"""A Django user (whatever has a `pk`), or an id: str, int or UUID."""


def user_id(user: User) -> str:
    """The id that the protocol knows a user by: the primary key as a string. Raises InvalidUser.

    An anonymous or unsaved user has none: two of them would be one and the same.
    """
    value = getattr(user, "pk", user)
    if value is None:
        raise errors.InvalidUser(f"{user!r} has no primary key, so there is no user to speak of.")
    if isinstance(value, bool) or (value is user and not isinstance(value, str | int | uuid.UUID)):
        raise errors.InvalidUser(f"A user is a model instance or an id, not {type(user).__name__}.")
    text = str(value)
    if not text:
        raise errors.InvalidUser("A user's id has at least one character.")
    return text
