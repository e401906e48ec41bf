"""Django's database in MariaDB: the unit tests whose subject is rows, transactions and locks."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.harness import deployments, mariadb

TESTS = (
    "applications/test_declarations.py",
    "applications/test_loading.py",
    "applications/test_models.py",
    "applications/test_rotation.py",
    "console/test_models.py",
    "integration/test_one_commit.py",
    "integration/test_outbox.py",
    "integration/test_outbox_databases.py",
    "integration/test_relay.py",
    "webhooks/test_databases.py",
    "webhooks/test_deliveries.py",
    "webhooks/test_result_writer.py",
)
LIMIT_S = 240.0


def test_rows_transactions_and_locks_work_in_mariadb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{os.environ['PATH']}:/usr/sbin")  # where Debian has the server
    with mariadb.running() as socket:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--ds=tests.mariadb_settings"),
                *(f"tests/unit/{name}" for name in TESTS),
            ],
            cwd=deployments.REPOSITORY,
            env={**os.environ, "MARIADB_SOCKET": str(socket)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
