"""A private PostgreSQL server: `initdb` in a temporary folder, reached through a Unix socket in it."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg

from tests.harness import parts, waiting

OWNER = "postgres"  # the account that runs the server if the tests run as root, which PostgreSQL refuses
SUPERUSER = "fanfare"
START_SECONDS = 30.0
STOP_SECONDS = 20.0


class Cluster:
    """A running server."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def url(self, database: str, **options: object) -> str:
        """A DATABASE_URL of an existing database. `options` become its query."""
        query = "".join(f"&{name}={quote(str(value), safe='')}" for name, value in options.items())
        return f"postgres://{SUPERUSER}@/{database}?host={quote(str(self.folder), safe='')}{query}"

    def connect(self, database: str = "postgres") -> psycopg.Connection[Any]:
        """A connection for the test; the caller closes it."""
        return psycopg.connect(host=str(self.folder), user=SUPERUSER, dbname=database, autocommit=True)

    def create(self, database: str) -> None:
        with contextlib.closing(self.connect()) as connection:
            connection.execute(f'CREATE DATABASE "{database}"')  # type: ignore[call-overload]


@contextlib.contextmanager
def running() -> Iterator[Cluster]:
    """Create and start a server; stop and delete it at the end."""
    programs = _programs()
    # Not in pytest's folder: only its owner may enter that, and a socket's path must be short.
    folder = Path(tempfile.mkdtemp(prefix="fanfare-pg-"))
    try:
        account = _account()
        if account:
            os.chown(folder, account["user"], account["group"])
        _initdb(programs / "initdb", folder, account)
        log = folder / "log"
        command = [str(programs / "postgres"), "-D", str(folder / "data"), "-k", str(folder)]
        # No TCP port, so none can be in use; no fsync, as test data need not survive a loss of power.
        command += ["-c", "listen_addresses=", "-c", "fsync=off", "-c", "max_connections=100"]
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, **account
            )
        try:
            cluster = Cluster(folder)
            waiting.until(lambda: _answers(cluster, process, log), START_SECONDS, "PostgreSQL accepts connections")
            yield cluster
        finally:
            process.send_signal(signal.SIGINT)  # "fast" shutdown: closes the connections
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGQUIT)  # "immediate" shutdown
                process.wait(STOP_SECONDS)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _programs() -> Path:
    """The folder of initdb and postgres. Debian has one per version, none of them on the PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return found[-1].parent if found else Path(parts.executable("initdb", "postgres")).parent


def _account() -> dict[str, Any]:
    """Arguments for Popen that switch from root to OWNER; empty if the tests do not run as root."""
    if os.geteuid() != 0:
        return {}
    try:
        entry = pwd.getpwnam(OWNER)
    except KeyError:
        parts.absent(f"there is no account {OWNER} to run PostgreSQL")
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def _initdb(program: Path, folder: Path, account: dict[str, Any]) -> None:
    command = [str(program), "-D", str(folder / "data"), "-U", SUPERUSER, "--auth=trust", "-E", "UTF8"]
    made = subprocess.run(
        [*command, "--locale=C", "--no-sync"],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **account,
    )
    assert made.returncode == 0, made.stdout + made.stderr


def _answers(cluster: Cluster, process: subprocess.Popen[bytes], log: Path) -> bool:
    assert process.poll() is None, log.read_text(errors="replace")
    try:
        cluster.connect().close()
    except psycopg.OperationalError:
        return False
    return True
