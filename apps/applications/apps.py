"""The tenants of this server: who may connect and publish, with which key and within which limits."""

from __future__ import annotations

from django.apps import AppConfig
from django.core import checks
from django.db.models import signals


class ApplicationsConfig(AppConfig):
    name = "apps.applications"
    label = "applications"
    verbose_name = "Realtime"  # the heading in the admin
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from apps.applications import declared, models

        checks.register(declared.check)
        for model in (models.Application, models.WebhookEndpoint, models.ChannelRule):
            signals.post_save.connect(models.fixture_loaded, sender=model)
