"""The tests' settings with Django's database in MariaDB, for tests/integration/test_mariadb.py."""

from __future__ import annotations

import os

import pymysql

from tests.settings import *  # noqa: F403

# Stands in for mysqlclient, which pip can install only where a C compiler and MariaDB's headers are. Django checks its
# version.
pymysql.version_info = (2, 2, 1, "final", 0)
pymysql.install_as_MySQLdb()

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.mysql",
        "NAME": "fanfare",
        "USER": "root",
        "OPTIONS": {"unix_socket": os.environ["MARIADB_SOCKET"], "charset": "utf8mb4"},
        "TEST": {"CHARSET": "utf8mb4"},
    }
}
