from __future__ import annotations

from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured

from myproject import databases

BASE = Path("/project")
DEFAULT = Path("/data/db.sqlite3")


def parse(url):
    return databases.parse(url, default=DEFAULT, base=BASE)


def test_default_database_is_a_file_in_the_data_folder():
    found = parse("")
    assert found["ENGINE"] == "django.db.backends.sqlite3"
    assert found["NAME"] == DEFAULT
    assert found["OPTIONS"]["transaction_mode"] == "IMMEDIATE"
    assert "journal_mode=WAL" in found["OPTIONS"]["init_command"]


@pytest.mark.parametrize(
    ("url", "path"), [("sqlite:///own.sqlite3", "/project/own.sqlite3"), ("sqlite:////srv/a%20b.db", "/srv/a b.db")]
)
def test_sqlite_url_is_relative_with_three_slashes_and_absolute_with_four(url, path):
    assert parse(url)["NAME"] == Path(path)


def test_postgresql_url_has_a_pool_and_no_persistent_connections():
    found = parse("postgres://me:p%40ss@db.example:5433/fan?sslmode=require&pool_max_size=9")
    assert found == {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": "fan",
        "USER": "me",
        "PASSWORD": "p@ss",
        "HOST": "db.example",
        "PORT": "5433",
        "CONN_MAX_AGE": 0,
        "CONN_HEALTH_CHECKS": True,
        "DISABLE_SERVER_SIDE_CURSORS": False,
        "OPTIONS": {"sslmode": "require", "pool": {"min_size": 1, "max_size": 9, "timeout": 10}},
    }


def test_postgresql_on_a_unix_socket_has_its_folder_as_host():
    assert parse("postgresql:///fan?host=/run/postgresql")["HOST"] == "/run/postgresql"


@pytest.mark.parametrize(
    "url",
    [
        "mysql://me:hush@host/name",
        "postgres://me:hush@host",
        "postgres://me:hush@host:port/name",
        "postgres://me:hush@[host/name",
        "postgres://me:hush@host/name?pool_max_size=0",
        "postgres://me:hush@host/name?pool_min_size=9",
        "postgres://me:hush@host/name?pool_timeout=soon",
        "postgres://me:hush@host/name?pool_max_size=true",
        "sqlite://:memory:",
        "sqlite://host/name",
        "sqlite:///",
        "nonsense",
    ],
)
def test_bad_url_is_refused_by_name_and_never_shows_a_password(url):
    with pytest.raises(ImproperlyConfigured, match="DATABASE_URL") as caught:
        parse(url)
    assert "hush" not in str(caught.value)


def test_options_of_a_sqlite_url_join_the_defaults():
    options = parse("sqlite:///own.sqlite3?timeout=9")["OPTIONS"]
    assert options["timeout"] == 9
    assert options["transaction_mode"] == "IMMEDIATE"
