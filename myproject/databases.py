"""Django's database from a URL: SQLite in the data folder by default, or PostgreSQL.

    sqlite:///relative/to/the/project.sqlite3     sqlite:////absolute/path.sqlite3
    postgres://user:password@host:5432/name?sslmode=require&pool_max_size=10

It holds applications, users and sessions. Events do not pass through it: the engine has a log of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dj_database_url
from django.core.exceptions import ImproperlyConfigured

SCHEMES = ("sqlite", "postgres", "postgresql")
EXPECTED = "expected sqlite:///path or postgres://user:password@host:port/name"

# Four workers of six connections each stay far below the hundred that PostgreSQL allows by default. `timeout`: seconds.
POOL = {"min_size": 1, "max_size": 6, "timeout": 10}

SQLITE_OPTIONS = {
    # A transaction that will write takes the write lock at its start: upgrading a read lock later fails at once,
    # whatever the timeout is.
    "transaction_mode": "IMMEDIATE",
    "timeout": 5,  # seconds
    "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL",
}


def parse(url: str, *, default: Path, base: Path) -> dict[str, Any]:
    """An entry of Django's DATABASES. An empty `url` means the SQLite file `default`; relative files start at `base`.

    Raises ImproperlyConfigured with a sentence that names DATABASE_URL and never shows a password.
    """
    if not url:
        return _sqlite(default)
    scheme = url.partition(":")[0]
    if scheme not in SCHEMES:
        raise ImproperlyConfigured(f"DATABASE_URL starts with {scheme!r}; {EXPECTED}.")
    try:
        found: dict[str, Any] = dict(dj_database_url.parse(url))
    except ValueError:
        raise ImproperlyConfigured(
            f"DATABASE_URL is not a valid URL; {EXPECTED}, with special characters as %XX."
        ) from None
    if scheme == "sqlite":
        if found.get("HOST") or found["NAME"] == ":memory:":
            raise ImproperlyConfigured(f"DATABASE_URL is {url!r}; {EXPECTED}.")
        return _sqlite(base / found["NAME"], **found.get("OPTIONS", {}))
    if not found["NAME"]:
        raise ImproperlyConfigured(f"DATABASE_URL names no database; {EXPECTED}.")
    options: dict[str, Any] = found.pop("OPTIONS", {})
    return {
        **found,
        "HOST": options.pop("host", found["HOST"]),  # ?host= may be the folder of a Unix socket
        "PORT": str(found["PORT"]),
        # The pool tests a connection before it gives it out (an empty query): after a restart of the database a dead
        # one would be a visitor's error page.
        "CONN_HEALTH_CHECKS": True,
        "OPTIONS": {"pool": _pool(options), **options},
    }


def _sqlite(path: Path, **options: Any) -> dict[str, Any]:
    return {"ENGINE": "django.db.backends.sqlite3", "NAME": path, "OPTIONS": {**SQLITE_OPTIONS, **options}}


def _pool(options: dict[str, Any]) -> dict[str, int]:
    """The pool's options, taken out of those of the URL."""
    pool = {}
    for name, default in POOL.items():
        value = pool[name] = options.pop(f"pool_{name}", default)
        if type(value) is not int or value < 1:
            raise ImproperlyConfigured(
                f"DATABASE_URL has pool_{name}={value}; it must be a whole number of at least 1."
            )
    if pool["min_size"] > pool["max_size"]:
        raise ImproperlyConfigured(
            f"DATABASE_URL has pool_min_size={pool['min_size']}, which is more than pool_max_size={pool['max_size']}."
        )
    return pool
