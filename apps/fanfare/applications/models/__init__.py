"""The models of the applications. The database is the source of truth for the registry in each worker's memory.

Every write (`save`, `delete`, `bulk_create`, and a queryset's `update`, `bulk_update` and `delete`) raises the
generation in the same transaction and announces the application after the commit. Raw SQL does neither: call
`Generation.bump` with it, and the workers reload within seconds.
"""

from __future__ import annotations

from fanfare.applications.models.announced import fixture_loaded
from fanfare.applications.models.application import Application
from fanfare.applications.models.channel_rule import ChannelRule
from fanfare.applications.models.generation import Generation
from fanfare.applications.models.webhook_endpoint import WebhookEndpoint

__all__ = ["Application", "ChannelRule", "Generation", "WebhookEndpoint", "fixture_loaded"]
