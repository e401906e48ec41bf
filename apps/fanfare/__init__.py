"""Realtime for Django code: publish events, and say who may join a channel.

    from fanfare import Member, apublish, channel, publish

The names are loaded on first use: importing this package must not import models, for Django imports it to find the app.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fanfare.integration.broadcasts import broadcast
    from fanfare.integration.encryption import decrypt
    from fanfare.integration.members import Member
    from fanfare.integration.publishing import apublish, publish
    from fanfare.integration.rules import channel
    from fanfare.integration.sign_in import UserData, user_data
    from fanfare.integration.tokens import sse_token
    from fanfare.jobs.declarations import background, periodic

__version__ = "0.2.0.dev0"

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
    "Member": "fanfare.integration.members",
    "UserData": "fanfare.integration.sign_in",
    "apublish": "fanfare.integration.publishing",
    "background": "fanfare.jobs.declarations",
    "broadcast": "fanfare.integration.broadcasts",
    "channel": "fanfare.integration.rules",
    "decrypt": "fanfare.integration.encryption",
    "periodic": "fanfare.jobs.declarations",
    "publish": "fanfare.integration.publishing",
    "sse_token": "fanfare.integration.tokens",
    "user_data": "fanfare.integration.sign_in",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(home), name)
    return value
