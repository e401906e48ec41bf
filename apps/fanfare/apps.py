from __future__ import annotations

from django.apps import AppConfig
from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.db.models import signals
from django.utils.module_loading import autodiscover_modules


class FanfareConfig(AppConfig):
    name = "fanfare"
    label = "fanfare"
    verbose_name = "Fanfare"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from fanfare import checks as fanfare_checks  # noqa: F401  (registers them)
        from fanfare import conf, older_layout
        from fanfare.applications import declarations, models
        from fanfare.console import permissions
        from fanfare.engine import current
        from fanfare.integration import checks as integration_checks  # noqa: F401
        from fanfare.integration.remote import engine as remote_engine
        from fanfare.management import runserver
        from fanfare.server import checks as server_checks  # noqa: F401  (registers them)

        runserver.take_over()
        with runserver.or_end():
            conf.settings.validate()
            _refuse_local_database(conf.settings.ENGINE)
        if conf.settings.REMOTE_URL:
            current.use(remote_engine.engine)
        else:
            current.configure(
                conf.settings.ENGINE,
                conf.settings.DATA_DIR,
                next_name=conf.settings.ENGINE_NEXT,
                sync=conf.settings.SYNC,
                log_seconds=conf.settings.LOG_SECONDS,
                append_timeout=conf.settings.APPEND_TIMEOUT,
                log_max_bytes=conf.settings.LOG_MAX_BYTES,
                redis_partitions=conf.settings.REDIS_PARTITIONS,
            )
        signals.pre_migrate.connect(older_layout.refuse, sender=self)
        checks.register(declarations.check)
        for model in (models.Application, models.WebhookEndpoint, models.ChannelRule):
            signals.post_save.connect(models.fixture_loaded, sender=model)
        signals.post_save.connect(permissions.application_saved, sender=models.Application)
        signals.post_delete.connect(permissions.application_deleted, sender=models.Application)
        signals.post_migrate.connect(permissions.migrated, sender=self)
        # Import the modules `channels` and `background` of every app, as Django imports `admin`: importing them
        # registers the channel rules and the background tasks that they declare.
        autodiscover_modules("channels", "background")


def _refuse_local_database(engine: str) -> None:
    """An engine that machines share needs a database that they share. Raises ImproperlyConfigured."""
    from fanfare.applications import database

    alias = database.alias()
    if "://" in engine and connections[alias].vendor == "sqlite":
        raise ImproperlyConfigured(
            f'FANFARE_ENGINE shares a log between machines, and DATABASES["{alias}"] is a SQLite file of this machine: '
            "set DATABASE_URL, or DATABASES, to a database that every machine reaches."
        )
