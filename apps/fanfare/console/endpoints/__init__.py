"""The endpoints of the console's pages, one module for each concern."""

from __future__ import annotations

import importlib

MODULES = (
    "overview",
    "channels",
    "connections",
    "workers",
    "webhooks",
    "tail",
    "tracing",
    "auth_doctor",
    "event_creator",
    "time_travel",
)


def load() -> None:
    """Import the modules, which declares their endpoints."""
    for name in MODULES:
        importlib.import_module(f"{__name__}.{name}")
