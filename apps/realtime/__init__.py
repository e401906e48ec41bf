"""Realtime for Django code: publish events, and say who may join a channel.

    from apps.realtime import Member, apublish, channel, publish

The names are loaded on first use: importing this package must not import models, for Django imports it to find the app.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apps.realtime.broadcasts import broadcast
    from apps.realtime.encryption import decrypt
    from apps.realtime.jobs import background, periodic
    from apps.realtime.members import Member
    from apps.realtime.publishing import apublish, publish
    from apps.realtime.rules import channel
    from apps.realtime.sign_in import UserData, user_data
    from apps.realtime.tokens import sse_token

__all__ = [
    "Member",
    "UserData",
    "apublish",
    "background",
    "broadcast",
    "channel",
    "decrypt",
    "periodic",
    "publish",
    "sse_token",
    "user_data",
]

_HOMES = {
    "Member": "apps.realtime.members",
    "UserData": "apps.realtime.sign_in",
    "apublish": "apps.realtime.publishing",
    "background": "apps.realtime.jobs",
    "broadcast": "apps.realtime.broadcasts",
    "channel": "apps.realtime.rules",
    "decrypt": "apps.realtime.encryption",
    "periodic": "apps.realtime.jobs",
    "publish": "apps.realtime.publishing",
    "sse_token": "apps.realtime.tokens",
    "user_data": "apps.realtime.sign_in",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(home), name)
    return value
