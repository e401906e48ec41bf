"""A PostgreSQL server of a test's own: made by `initdb` in a new folder, reached through a Unix socket there."""

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

OWNER = "postgres"  # who runs it where the tests run as root: PostgreSQL refuses to
SUPERUSER = "fanfare"
START_SECONDS = 30.0
STOP_SECONDS = 20.0


class Cluster:
    """A running server. `url`: for DATABASE_URL, of a database that exists."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def url(self, database: str, **options: object) -> str:
        """`options` go into the query."""
        query = "".join(f"&{name}={quote(str(value), safe='')}" for name, value in options.items())
        return f"postgres://{SUPERUSER}@/{database}?host={quote(str(self.folder), safe='')}{query}"

    def connect(self, database: str = "postgres") -> psycopg.Connection[Any]:
        """Of the test itself; the caller closes it."""
        return psycopg.connect(host=str(self.folder), user=SUPERUSER, dbname=database, autocommit=True)

    def create(self, database: str) -> None:
        with contextlib.closing(self.connect()) as connection:
            connection.execute(f'CREATE DATABASE "{database}"')  # type: ignore[call-overload]


@contextlib.contextmanager
def running() -> Iterator[Cluster]:
    """Make it, start it, stop it, and leave nothing behind."""
    programs = _programs()
    # Not below pytest's folder, which its owner alone may enter; and the path of a socket is short.
    folder = Path(tempfile.mkdtemp(prefix="fanfare-pg-"))
    try:
        who = _owner()
        if who:
            os.chown(folder, who["user"], who["group"])
        _make(programs / "initdb", folder, who)
        log = folder / "log"
        command = [str(programs / "postgres"), "-D", str(folder / "data"), "-k", str(folder)]
        # No port to be taken by others; and what a test writes need not survive a loss of power.
        command += ["-c", "listen_addresses=", "-c", "fsync=off", "-c", "max_connections=100"]
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, **who
            )
        try:
            cluster = Cluster(folder)
            waiting.until(lambda: _answers(cluster, process, log), START_SECONDS, "PostgreSQL answers")
            yield cluster
        finally:
            process.send_signal(signal.SIGINT)  # "fast": connections are ended
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGQUIT)  # "immediate"
                process.wait(STOP_SECONDS)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _programs() -> Path:
    """The folder of initdb and postgres. Debian keeps them off the PATH, one folder for each version."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return found[-1].parent if found else Path(parts.executable("initdb", "postgres")).parent


def _owner() -> dict[str, Any]:
    """Arguments of Popen."""
    if os.geteuid() != 0:
        return {}
    try:
        entry = pwd.getpwnam(OWNER)
    except KeyError:
        parts.absent(f"there is no user {OWNER} who could run PostgreSQL")
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def _make(initdb: Path, folder: Path, who: dict[str, Any]) -> None:
    command = [str(initdb), "-D", str(folder / "data"), "-U", SUPERUSER, "--auth=trust", "-E", "UTF8"]
    made = subprocess.run(
        [*command, "--locale=C", "--no-sync"],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **who,
    )
    assert made.returncode == 0, made.stdout + made.stderr


def _answers(cluster: Cluster, process: subprocess.Popen[bytes], log: Path) -> bool:
    assert process.poll() is None, log.read_text(errors="replace")
    try:
        cluster.connect().close()
    except psycopg.OperationalError:
        return False
    return True
