"""Django's database from a URL: SQLite in the data folder by default, or PostgreSQL.

    sqlite:///relative/to/the/project.sqlite3     sqlite:////absolute/path.sqlite3
    postgres://user:password@host:5432/name?sslmode=require&pool_max_size=10

The hot path never asks this database: it holds applications, users and sessions, and the engine's log is a file of its
own.
"""

from __future__ import annotations

import urllib.parse
from pathlib import Path
from typing import Any

from django.core.exceptions import ImproperlyConfigured

EXPECTED = "expected sqlite:///path or postgres://user:password@host:port/name"

# Four workers of six connections each stay far below the hundred that PostgreSQL allows as it is installed.
POOL = {"min_size": 1, "max_size": 6, "timeout": 10}

SQLITE_OPTIONS = {
    # A transaction that means to write takes the write lock at its start: a later upgrade of a read lock fails at once,
    # whatever the time-out says.
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
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ImproperlyConfigured(f"DATABASE_URL is not a URL ({error}); {EXPECTED}.") from None
    if parts.scheme == "sqlite":
        name = urllib.parse.unquote(parts.path.removeprefix("/"))
        if parts.netloc or not name:
            raise ImproperlyConfigured(f"DATABASE_URL is {url!r}; {EXPECTED}.")
        return _sqlite(base / name)
    if parts.scheme in {"postgres", "postgresql"}:
        return _postgresql(parts, port)
    raise ImproperlyConfigured(f"DATABASE_URL starts with {parts.scheme!r}; {EXPECTED}.")


def _sqlite(path: Path) -> dict[str, Any]:
    return {"ENGINE": "django.db.backends.sqlite3", "NAME": path, "OPTIONS": dict(SQLITE_OPTIONS)}


def _postgresql(parts: urllib.parse.SplitResult, port: int | None) -> dict[str, Any]:
    name = urllib.parse.unquote(parts.path.removeprefix("/"))
    if not name:
        raise ImproperlyConfigured(f"DATABASE_URL names no database; {EXPECTED}.")
    options: dict[str, Any] = dict(urllib.parse.parse_qsl(parts.query))
    pool: dict[str, Any] = {key: _pool_option(f"pool_{key}", options, value) for key, value in POOL.items()}
    if pool["min_size"] > pool["max_size"]:
        raise ImproperlyConfigured(
            f"DATABASE_URL has pool_min_size={pool['min_size']}, which is more than pool_max_size={pool['max_size']}."
        )
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": name,
        "USER": urllib.parse.unquote(parts.username or ""),
        "PASSWORD": urllib.parse.unquote(parts.password or ""),
        "HOST": options.pop("host", None) or urllib.parse.unquote(parts.hostname or ""),
        "PORT": str(port or ""),
        # Under ASGI each request has a thread of its own, so a connection that stays open is never used again. The pool
        # keeps them.
        "CONN_MAX_AGE": 0,
        # The pool looks whether a connection lives before it gives it out (an empty query). Otherwise, after a restart
        # of the database, each dead one would be a visitor's error page.
        "CONN_HEALTH_CHECKS": True,
        "OPTIONS": {**options, "pool": pool},
    }


def _pool_option(name: str, options: dict[str, Any], default: int) -> int:
    value = options.pop(name, str(default))
    if not value.isdecimal() or int(value) < 1:
        raise ImproperlyConfigured(f"DATABASE_URL has {name}={value}; it must be a whole number of at least 1.")
    return int(value)
