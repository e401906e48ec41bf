"""The models of Fanfare. Each concern keeps its own module; Django finds all of them here."""

from __future__ import annotations

from fanfare.applications.models import Application, ChannelRule, Generation, WebhookEndpoint
from fanfare.integration.models import OutboxEvent
from fanfare.webhooks.models import Delivery

__all__ = ["Application", "ChannelRule", "Delivery", "Generation", "OutboxEvent", "WebhookEndpoint"]
