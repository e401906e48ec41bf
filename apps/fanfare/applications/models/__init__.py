"""The tenants in the database, which is the truth about them.

Whatever changes a row raises the generation in the same transaction, and announces the application after the commit:
`save`, `delete`, `bulk_create`, and a queryset's `update`, `bulk_update` and `delete`. Raw SQL does not; who uses it
calls `Generation.bump`, and the workers notice within seconds.
"""

from __future__ import annotations

from fanfare.applications.models.announced import fixture_loaded
from fanfare.applications.models.application import Application
from fanfare.applications.models.channel_rule import ChannelRule
from fanfare.applications.models.generation import Generation
from fanfare.applications.models.webhook_endpoint import WebhookEndpoint

__all__ = ["Application", "ChannelRule", "Generation", "WebhookEndpoint", "fixture_loaded"]
