from __future__ import annotations

from django.apps import AppConfig
from django.utils.module_loading import autodiscover_modules


class RealtimeConfig(AppConfig):
    name = "apps.realtime"
    label = "realtime"
    verbose_name = "Realtime"

    def ready(self) -> None:
        """Import the modules `channels` and `background` of every app, as Django imports `admin`: importing them
        registers what they declare."""
        autodiscover_modules("channels", "background")
