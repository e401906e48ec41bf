"""The admin pages of Fanfare. Importing the modules registers them."""

from __future__ import annotations

from fanfare.applications import admin as applications
from fanfare.console import admin as console
from fanfare.integration import admin as outbox
from fanfare.webhooks import admin as webhooks

__all__ = ["applications", "console", "outbox", "webhooks"]
