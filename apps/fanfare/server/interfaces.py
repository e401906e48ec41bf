"""Types of ASGI applications."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

# ASGI 3. Loosely typed, because the packages that meet here (Django, Channels, ServeStatic, our own) each write ASGI's
# types in another precision.
Application = Callable[[Any, Any, Any], Awaitable[None]]
