"""Realtime for Django code: publish events, and say who may join a channel.

    from apps.realtime import Member, apublish, channel, publish

The names are loaded on first use: importing this package must not import models, for Django imports it to find the app.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apps.realtime.members import Member
    from apps.realtime.publishing import apublish, publish
    from apps.realtime.rules import channel

__all__ = ["Member", "apublish", "channel", "publish"]

_HOMES = {
    "Member": "apps.realtime.members",
    "apublish": "apps.realtime.publishing",
    "channel": "apps.realtime.rules",
    "publish": "apps.realtime.publishing",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(home), name)
    return value
