"""Connections that were refused: counted, and told to the log."""

from __future__ import annotations

import logging
from typing import Final

from fanfare.hub import hub as hubs
from fanfare.runtime.log_throttle import LogThrottle

LOGGED_PER_SECOND: Final = 10  # of a whole worker: a thousand clients with an old key come back every second

_log = LogThrottle(logging.getLogger(__name__), 1.0, burst=LOGGED_PER_SECOND)


def note(hub: hubs.Hub, code: int, message: str, address: str) -> None:
    """`code`: the close code. `message` may quote what the client sent, made printable. `address`: of the client."""
    hub.count(f"pusher.refused.{code}")
    _log.info("Connection from %s refused with %d: %s", address or "an unknown address", code, message)
