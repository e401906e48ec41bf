from __future__ import annotations

import importlib

from django.apps import AppConfig
from django.core import checks
from django.db.models import signals
from django.utils.module_loading import autodiscover_modules


class FanfareConfig(AppConfig):
    name = "fanfare"
    label = "fanfare"
    verbose_name = "Fanfare"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from django.conf import settings

        from fanfare import checks as fanfare_checks  # noqa: F401  (registers them)
        from fanfare.applications import declared, models
        from fanfare.engine import current

        current.configure(
            settings.FANFARE_ENGINE,
            settings.FANFARE_DATA_DIR,
            sync=settings.FANFARE_SYNC,
            log_seconds=settings.FANFARE_LOG_SECONDS,
            append_timeout=settings.FANFARE_APPEND_TIMEOUT,
        )
        checks.register(declared.check)
        for model in (models.Application, models.WebhookEndpoint, models.ChannelRule):
            signals.post_save.connect(models.fixture_loaded, sender=model)
        # Import the modules `channels` and `background` of every app, as Django imports `admin`: importing them
        # registers the channel rules and the background tasks that they declare.
        autodiscover_modules("channels", "background")
        importlib.import_module("fanfare.integration.relay")
