"""`migrate` refuses a database with tables of a Fanfare from which there is no upgrade.

The tables of Fanfare 0.1 belonged to apps with the labels `applications`, `webhooks` and `realtime`. A project may have
apps of its own with these labels, so such a database is recognized by what only Fanfare's had: names of migrations, and
columns of a table. Development versions of 0.2 changed the initial migration: where it is applied, and columns of the
the models of the applied migrations are missing, the database was made by one of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django.apps.registry import Apps
from django.core.management.base import CommandError
from django.db import connections, router
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


def refuse(using: str, plan: list[tuple[Any, bool]], apps: Apps, **_: Any) -> None:
    """Handler of `pre_migrate`; `apps` has the models as they were. Raises CommandError before anything is changed."""
    planned = [migration for migration, _backwards in plan if migration.app_label == "fanfare"]
    maker = ""
    if any(migration.initial for migration in planned) and is_of_0_1(using):
        maker = "Fanfare 0.1"
    elif is_of_development_version(using, apps):
        maker = "a development version of Fanfare 0.2"
    if maker:
        name = str(connections[using].settings_dict["NAME"])
        raise CommandError(
            f"The database {name!r} was made by {maker}, from which there is no upgrade: give this version a new "
            "database (DATABASE_URL, or another FANFARE_DATA_DIR)."
        )


def is_of_0_1(using: str) -> bool:
    return _columns(using, TABLE) >= COLUMNS or not MIGRATIONS.isdisjoint(_applied(using))


def is_of_development_version(using: str, before: Apps) -> bool:
    return any(_missing_columns(using, before))


def _missing_columns(using: str, before: Apps) -> Iterator[set[str]]:
    """Columns that the applied migrations should have made. `before`: has no model whose migration is not applied."""
    for model in before.get_models():
        # On a database where the project's router allows no table, the migration is recorded all the same.
        if model._meta.app_label == "fanfare" and model._meta.managed and router.allow_migrate_model(using, model):
            wanted = {str(field.column) for field in model._meta.local_concrete_fields}
            yield wanted - _columns(using, model._meta.db_table)


def _columns(using: str, table: str) -> set[str]:
    """The columns of a table; none if it does not exist."""
    connection = connections[using]
    with connection.cursor() as cursor:
        if table not in connection.introspection.table_names(cursor):
            return set()
        return {column.name for column in connection.introspection.get_table_description(cursor, table)}


def _applied(using: str) -> set[tuple[str, str]]:
    return set(MigrationRecorder(connections[using]).applied_migrations())
