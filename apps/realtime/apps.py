from __future__ import annotations

import importlib

from django.apps import AppConfig
from django.utils.module_loading import autodiscover_modules


class RealtimeConfig(AppConfig):
    name = "apps.realtime"
    label = "realtime"
    default_auto_field = "django.db.models.BigAutoField"
    verbose_name = "Publishing"  # the heading in the admin

    def ready(self) -> None:
        """Import the modules `channels` and `background` of every app, as Django imports `admin`: importing them
        registers what they declare. The background work of this app itself is the relay."""
        autodiscover_modules("channels", "background")
        importlib.import_module("apps.realtime.relay")
