"""A private MariaDB server in a temporary folder, reached through a Unix socket in it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.harness import parts, waiting

OWNER = "mysql"  # the account that runs the server if the tests run as root, which MariaDB refuses
START_S = 60.0
STOP_S = 20.0


@contextlib.contextmanager
def running() -> Iterator[Path]:
    """Create and start a server; stop and delete it at the end. The path of its socket; `root` needs no password."""
    server, installer = parts.executable("mariadbd", "mysqld"), parts.executable("mariadb-install-db")
    with tempfile.TemporaryDirectory(prefix="fanfare-mariadb-") as name:
        folder = Path(name)
        common = ["--no-defaults", f"--datadir={folder / 'data'}"]
        if os.geteuid() == 0:
            shutil.chown(folder, OWNER)
            common.append(f"--user={OWNER}")
        subprocess.run(
            [installer, *common, "--auth-root-authentication-method=normal", "--skip-test-db"],
            check=True,
            capture_output=True,
        )
        path = folder / "socket"
        # No fsync, as test data need not survive a loss of power: each test empties all tables.
        options = [f"--socket={path}", "--skip-networking", "--innodb-flush-method=nosync"]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen([server, *common, *options], stdout=log, stderr=subprocess.STDOUT)
        try:
            waiting.until(lambda: path.exists() or process.poll() is not None, START_S, "MariaDB accepts connections")
            assert process.poll() is None, (folder / "log").read_text(encoding="utf-8", errors="replace")
            yield path
        finally:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(STOP_S)
