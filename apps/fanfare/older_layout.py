"""`migrate` refuses a database that was made by Fanfare 0.1, whose tables belonged to several apps.

Those apps had the labels `applications`, `webhooks` and `realtime`. A project may have apps of its own with these
labels, so an older database is recognised by what only Fanfare's had: names of migrations, and columns of a table.
"""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandError
from django.db import connections
from django.db.migrations.recorder import MigrationRecorder

MIGRATIONS = frozenset(
    {
        ("applications", "0002_counts_durations_and_previous_secret"),
        ("applications", "0003_webhookendpoint"),
        ("applications", "0004_channelrule"),
        ("realtime", "0001_outbox"),
    }
)
TABLE = "applications_application"
COLUMNS = frozenset({"app_id", "key", "secret", "client_events", "declared", "allowed_origins"})


def refuse(using: str, plan: list[tuple[Any, bool]], **_: Any) -> None:
    """Handler of `pre_migrate`: raise CommandError before Fanfare's tables are created beside the older ones."""
    creates = any(
        migration.app_label == "fanfare" and migration.initial for migration, backwards in plan if not backwards
    )
    if creates and is_older(using):
        name = str(connections[using].settings_dict["NAME"])
        raise CommandError(
            f"The database {name!r} was made by Fanfare 0.1, from which there is no upgrade: give this version a new "
            "database (DATABASE_URL, or another FANFARE_DATA_DIR)."
        )


def is_older(using: str) -> bool:
    connection = connections[using]
    with connection.cursor() as cursor:
        tables = connection.introspection.table_names(cursor)
        if TABLE in tables:
            description = connection.introspection.get_table_description(cursor, TABLE)
            if {column.name for column in description} >= COLUMNS:
                return True
    return not MIGRATIONS.isdisjoint(MigrationRecorder(connection).applied_migrations())
