"""What the project does once, when Django is ready."""

from __future__ import annotations

from django.apps import AppConfig
from django.conf import settings


class FanfareConfig(AppConfig):
    name = "myproject"
    label = "myproject"
    verbose_name = "Fanfare"

    def ready(self) -> None:
        from apps.engine import current
        from myproject import checks  # noqa: F401  (registers them)

        current.configure(
            settings.FANFARE_ENGINE,
            settings.FANFARE_DATA_DIR,
            sync=settings.FANFARE_SYNC,
            log_seconds=settings.FANFARE_LOG_SECONDS,
            append_timeout=settings.FANFARE_APPEND_TIMEOUT,
        )
