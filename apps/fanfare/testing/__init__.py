"""The tools for a project's tests.

    from fanfare.testing import captured_events, running_server

pytest has them as the fixtures `fanfare_events` and `fanfare_server` (`fanfare.testing.pytest_plugin`).
"""

from __future__ import annotations

from fanfare.testing.captured import Event, Events, captured_events
from fanfare.testing.live_server import RunningServer, running_server

__all__ = ["Event", "Events", "RunningServer", "captured_events", "running_server"]
