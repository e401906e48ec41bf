"""A private PostgreSQL server: `initdb` in a temporary folder, reached through a Unix socket in it."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import psycopg

from tests.harness import parts, waiting

OWNER = "postgres"  # the account that runs the server if the tests run as root, which PostgreSQL refuses
SUPERUSER = "fanfare"
START_SECONDS = 30.0
STOP_SECONDS = 20.0
INITDB = ("-U", SUPERUSER, "--auth=trust", "-E", "UTF8", "--locale=C", "--no-sync")


class Cluster:
    """A server. `start` starts it, `stop` stops it; both may be called again. `under`: a command that runs it in
    another network namespace, where it listens on TCP too."""

    def __init__(self, folder: Path, account: dict[str, Any], under: Sequence[str] = ()) -> None:
        self.folder = folder
        self._account = account
        self._under = under
        self._process: subprocess.Popen[bytes] | None = None

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

    def start(self) -> None:
        """Start the server and wait until it accepts connections."""
        command = [str(_programs() / "postgres"), "-D", str(self.folder / "data"), "-k", str(self.folder)]
        # No TCP port, so none can be in use; no fsync, as test data need not survive a loss of power.
        command += ["-c", f"listen_addresses={'*' if self._under else ''}", "-c", "fsync=off"]
        command += ["-c", "max_connections=100"]
        account = self._account
        if self._under:
            # Only root may enter the namespace.
            command = [*self._under, *_switch(account), *command]
            account = {}
        log = self.folder / "log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                **account,
            )
        self._process = process
        waiting.until(lambda: _answers(self, process, log), START_SECONDS, "PostgreSQL accepts connections")

    def stop(self, number: signal.Signals = signal.SIGINT) -> None:
        """End the server. SIGINT is a "fast" shutdown, SIGQUIT an "immediate" one, as after a crash. Idempotent."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGQUIT)
            process.wait(STOP_SECONDS)

    def kill(self) -> None:
        """SIGKILL to the server and all its processes, which leave their lock files behind. Idempotent."""
        process, self._process = self._process, None
        if process is not None:
            for one in self._all(process):
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
            process.wait(STOP_SECONDS)

    def freeze(self) -> None:
        """SIGSTOP to the server and all its processes."""
        for one in self._all(self._process):
            with contextlib.suppress(psutil.NoSuchProcess):
                one.suspend()

    def thaw(self) -> None:
        """After `freeze`."""
        for one in self._all(self._process):
            with contextlib.suppress(psutil.NoSuchProcess):
                one.resume()

    def _all(self, process: subprocess.Popen[bytes] | None) -> list[psutil.Process]:
        """The postmaster first, so that it starts no others."""
        if process is None:
            return []
        postmaster = psutil.Process(process.pid)
        return [postmaster, *postmaster.children(recursive=True)]

    def promote(self) -> None:
        """Make a standby the primary, and wait until it takes writes."""
        with contextlib.closing(self.connect()) as connection:
            connection.execute("SELECT pg_promote(true)")

        def writes() -> bool:
            with contextlib.closing(self.connect()) as connection:
                [(recovery,)] = connection.execute("SELECT pg_is_in_recovery()").fetchall()
            return not recovery

        waiting.until(writes, START_SECONDS, "the standby is the primary")

    def catch_up(self, primary: Cluster) -> None:
        """Wait until this standby has everything that the primary has written."""
        with contextlib.closing(primary.connect()) as connection:
            [(written,)] = connection.execute("SELECT pg_current_wal_lsn()").fetchall()

        def has_it() -> bool:
            with contextlib.closing(self.connect()) as connection:
                [(found,)] = connection.execute("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", (written,)).fetchall()
            return bool(found)

        waiting.until(has_it, START_SECONDS, "the standby has everything")

    def follow(self, primary: Cluster) -> None:
        """Start this server, which is stopped, as a standby with a copy of the primary's data."""
        shutil.rmtree(self.folder / "data", ignore_errors=True)
        command = [str(_programs() / "pg_basebackup"), "-D", str(self.folder / "data"), "-R", "-X", "stream"]
        command += ["-c", "fast", "-h", str(primary.folder), "-U", SUPERUSER, "--no-sync"]
        _run(command, self.folder, self._account)
        self.start()

    @contextlib.contextmanager
    def stopped(self, number: signal.Signals = signal.SIGINT) -> Iterator[None]:
        """Stop the server for the block."""
        self.stop(number)
        try:
            yield
        finally:
            self.start()


@contextlib.contextmanager
def running(under: Sequence[str] = ()) -> Iterator[Cluster]:
    """Create and start a server; stop and delete it at the end."""
    with _folder() as (folder, account):
        _run([str(_programs() / "initdb"), "-D", str(folder / "data"), *INITDB], folder, account)
        if under:
            with (folder / "data" / "pg_hba.conf").open("a", encoding="utf-8") as file:
                file.write("host all all all trust\n")
        with _started(Cluster(folder, account, under)) as cluster:
            yield cluster


@contextlib.contextmanager
def standby(primary: Cluster) -> Iterator[Cluster]:
    """A running standby of a primary, made by pg_basebackup; deleted at the end."""
    with _folder() as (folder, account):
        cluster = Cluster(folder, account)
        try:
            cluster.follow(primary)
            yield cluster
        finally:
            cluster.stop()


@contextlib.contextmanager
def pooled(cluster: Cluster, database: str) -> Iterator[str]:
    """A running PgBouncer in transaction mode before a server; its URL."""
    program = parts.executable("pgbouncer")
    with _folder() as (folder, account):
        settings = folder / "pgbouncer.ini"
        settings.write_text(
            f"[databases]\n{database} = host={cluster.folder} dbname={database} user={SUPERUSER}\n"
            f"[pgbouncer]\nlisten_addr =\nunix_socket_dir = {folder}\nauth_type = any\npool_mode = transaction\n",
            encoding="utf-8",
        )
        settings.chmod(0o644)
        with (folder / "log").open("wb") as output:
            process = subprocess.Popen(
                [program, str(settings)], stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, **account
            )
        try:
            waiting.until((folder / ".s.PGSQL.6432").exists, START_SECONDS, "PgBouncer listens")
            yield f"postgres://{SUPERUSER}@/{database}?host={quote(str(folder), safe='')}&port=6432"
        finally:
            process.terminate()
            process.wait(STOP_SECONDS)


@contextlib.contextmanager
def _folder() -> Iterator[tuple[Path, dict[str, Any]]]:
    """A folder of the account that runs the programs, and that account; deleted at the end."""
    # Not in pytest's folder: only its owner may enter that, and a socket's path must be short.
    folder = Path(tempfile.mkdtemp(prefix="fanfare-pg-"))
    try:
        account = _account()
        if account:
            os.chown(folder, account["user"], account["group"])
        yield folder, account
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _started(cluster: Cluster) -> Iterator[Cluster]:
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def _programs() -> Path:
    """The folder of initdb and postgres. Debian has one per version, none of them on the PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return found[-1].parent if found else Path(parts.executable("initdb", "postgres")).parent


def _switch(account: dict[str, Any]) -> list[str]:
    """The command that switches from root to the account."""
    program = parts.executable("setpriv")
    return [program, f"--reuid={account['user']}", f"--regid={account['group']}", "--clear-groups"]


def _account() -> dict[str, Any]:
    """Arguments for Popen that switch from root to OWNER; empty if the tests do not run as root."""
    if os.geteuid() != 0:
        return {}
    try:
        entry = pwd.getpwnam(OWNER)
    except KeyError:
        parts.absent(f"there is no account {OWNER} to run PostgreSQL")
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def _run(command: list[str], folder: Path, account: dict[str, Any]) -> None:
    done = subprocess.run(
        command,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **account,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _answers(cluster: Cluster, process: subprocess.Popen[bytes], log: Path) -> bool:
    assert process.poll() is None, log.read_text(errors="replace")
    try:
        cluster.connect().close()
    except psycopg.OperationalError:
        return False
    return True
