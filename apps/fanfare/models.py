"""The models of Fanfare. Each concern keeps its own module; Django finds all of them here."""

from __future__ import annotations

from fanfare.applications.models import Application, ChannelRule, Generation, WebhookEndpoint
from fanfare.console.models import AuditEntry, Console
from fanfare.integration.models import OutboxEvent
from fanfare.webhooks.models import Delivery

__all__ = [
    "Application",
    "AuditEntry",
    "ChannelRule",
    "Console",
    "Delivery",
    "Generation",
    "OutboxEvent",
    "WebhookEndpoint",
]
