"""A database of Fanfare 0.1 is refused in one sentence, and nothing in it is changed."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps

from fanfare import older_layout
from tests.harness import deployments

APPLICATION = (
    "CREATE TABLE applications_application (id INTEGER PRIMARY KEY, app_id TEXT, key TEXT, secret TEXT, name TEXT, "
    "client_events INTEGER, declared INTEGER, allowed_origins TEXT)"
)
MIGRATIONS = "CREATE TABLE django_migrations (id INTEGER PRIMARY KEY, app TEXT, name TEXT, applied TEXT)"


def row(app: str, name: str) -> str:
    return f"INSERT INTO django_migrations (app, name, applied) VALUES ('{app}', '{name}', '2026-01-01 00:00:00')"


def migrate(database: Path, *target: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(deployments.OWN_PREFIXES)}
    return subprocess.run(
        [sys.executable, "manage.py", "migrate", "--verbosity", "0", *target],
        cwd=deployments.REPOSITORY,
        env={
            **inherited,
            "DATABASE_URL": f"sqlite:///{database}",
            "FANFARE_DATA_DIR": str(database.parent / "var"),
            "FANFARE_ENV_FILE": os.devnull,
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def fill(database: Path, *statements: str) -> None:
    connection = sqlite3.connect(database)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


def dump(database: Path) -> list[str]:
    connection = sqlite3.connect(database)
    try:
        return list(connection.iterdump())
    finally:
        connection.close()


@pytest.mark.parametrize(
    "statements",
    [
        [APPLICATION],
        [APPLICATION, MIGRATIONS, row("applications", "0001_initial")],
        [MIGRATIONS, row("applications", "0004_channelrule")],
        [MIGRATIONS, row("realtime", "0001_outbox"), row("webhooks", "0001_initial")],
    ],
)
def test_migrate_refuses_an_older_database_in_one_sentence_and_leaves_it_alone(
    tmp_path: Path, statements: list[str]
) -> None:
    database = tmp_path / "db.sqlite3"
    fill(database, *statements)
    before = dump(database)
    ended = migrate(database)
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert len(ended.stderr.strip().splitlines()) == 1, ended.stderr
    assert "was made by Fanfare 0.1" in ended.stderr
    assert str(database) in ended.stderr
    assert dump(database) == before


def test_migrate_refuses_a_database_whose_initial_migration_was_another(tmp_path: Path) -> None:
    database = tmp_path / "db.sqlite3"
    assert migrate(database).returncode == 0
    assert migrate(database).returncode == 0, "a second run has nothing to refuse"
    fill(database, "ALTER TABLE fanfare_outboxevent DROP COLUMN reason")
    ended = migrate(database)
    assert ended.returncode == 1
    assert "was made by a development version of Fanfare 0.2" in ended.stderr


def test_migrate_refuses_such_a_database_also_where_later_migrations_are_missing(tmp_path: Path) -> None:
    database = tmp_path / "db.sqlite3"
    assert migrate(database, "fanfare", "0001").returncode == 0
    fill(database, "ALTER TABLE fanfare_outboxevent DROP COLUMN reason")
    before = dump(database)
    ended = migrate(database)
    assert ended.returncode == 1
    assert "was made by a development version of Fanfare 0.2" in ended.stderr
    assert dump(database) == before


def test_migrate_accepts_a_project_whose_own_apps_have_the_older_labels(tmp_path: Path) -> None:
    database = tmp_path / "db.sqlite3"
    fill(
        database,
        "CREATE TABLE applications_application (id INTEGER PRIMARY KEY, applicant TEXT, key TEXT)",
        "CREATE TABLE webhooks_delivery (id INTEGER PRIMARY KEY)",
        MIGRATIONS,
        row("applications", "0001_initial"),
        row("webhooks", "0001_initial"),
        row("realtime", "0001_initial"),
    )
    ended = migrate(database)
    assert ended.returncode == 0, ended.stderr
    assert any("fanfare_application" in line for line in dump(database))


def test_database_without_tables_by_the_projects_router_is_not_refused(settings: Any) -> None:
    class Router:
        def allow_migrate(self, db: str, app_label: str, **hints: Any) -> bool | None:
            return False if app_label == "fanfare" else None

    settings.DATABASE_ROUTERS = [Router()]
    assert list(older_layout._missing_columns("default", apps)) == []
