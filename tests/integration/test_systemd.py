"""The units of deploy/, run by systemd as process 1 of a machine that has its own root folder and this machine's /usr.

systemd-nspawn boots it. It shares the network with the tests, which is why the units get a free port in place of 8000,
and the packages of the tests.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from socket import create_connection

import psutil
import pytest

from tests.harness import calls, deployments, parts, servers, sockets, waiting

APPLICATION = deployments.Application("1001", "systemd-key", "systemd-secret")
SYSTEMD = "/usr/lib/systemd/systemd"
BOOT_S = 120.0  # a busy machine may take its time
UID = 990
USERS = "root:x:0:0::/root:/bin/sh\nfanfare:x:{uid}:{uid}::/var/lib/fanfare:/usr/sbin/nologin\n"
GROUPS = "root:x:0:\nfanfare:x:{uid}:\n"
ENVIRONMENT = f"""
FANFARE_DATA_DIR=/var/lib/fanfare
FANFARE_ALLOWED_HOSTS={servers.HOST}
FANFARE_DEMO=0
FANFARE_DRAIN_SECONDS=1
FANFARE_APPS={APPLICATION.id}:{APPLICATION.key}:{APPLICATION.secret}:Tests
"""
DROP_IN = "etc/systemd/system/fanfare.service.d"
# The interpreter of the tests may be in a home folder, which the service cannot see, and is mounted elsewhere.
INTERPRETER = "[Service]\nEnvironment=LD_LIBRARY_PATH=/opt/python/lib\n"
RECONNECT_CODES = {1012, 4200}


class Machine:
    """A machine with the files that deploy/README.md puts on it, and systemd as its process 1."""

    application = APPLICATION

    def __init__(self, root: Path) -> None:
        self.root = root
        self.port = servers.free_port()
        self._log = root.parent / "console"
        self._furnish()
        with self._log.open("wb") as output:
            self._nspawn = subprocess.Popen(
                self._command(),
                # With the older hierarchy of cgroups, systemd in a container does not learn that a service has ended.
                env={**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def _furnish(self) -> None:
        site = f"srv/fanfare/.venv/lib/python{sysconfig.get_python_version()}/site-packages"
        for folder in ("usr", "var", "root", "tmp", "proc", "sys", "dev", "run", "opt", DROP_IN, site):
            (self.root / folder).mkdir(parents=True)
        self.root.chmod(0o755)
        for name in ("bin", "sbin", "lib", "lib64"):
            (self.root / name).symlink_to(f"usr/{name}")
        code = self.root / "srv/fanfare"
        for name in ("manage.py", "gunicorn.conf.py"):
            shutil.copy(deployments.REPOSITORY / name, code)
        for name in ("fanfare.service", "fanfare.socket"):
            text = (deployments.REPOSITORY / "deploy" / name).read_text(encoding="utf-8")
            (self.root / "etc/systemd/system" / name).write_text(text.replace(":8000", f":{self.port}"))
        binaries = code / ".venv/bin"
        binaries.mkdir()
        (binaries / "python").symlink_to(f"/opt/python/bin/python{sysconfig.get_python_version()}")
        (binaries / "gunicorn").write_text(
            "#!/srv/fanfare/.venv/bin/python\nfrom gunicorn.app.wsgiapp import run\nrun()\n"
        )
        (binaries / "gunicorn").chmod(0o755)
        for name, text in {
            "etc/os-release": Path("/etc/os-release").read_text(encoding="utf-8"),
            "etc/machine-id": f"{uuid.uuid4().hex}\n",  # with one, systemd asks no questions at its first boot
            "etc/passwd": USERS.format(uid=UID),
            "etc/group": GROUPS.format(uid=UID),
            "srv/fanfare/.env": ENVIRONMENT,
            f"{DROP_IN}/interpreter.conf": INTERPRETER,
            "srv/fanfare/.venv/pyvenv.cfg": "home = /opt/python/bin\ninclude-system-site-packages = false\n",
            f"{site}/these.pth": "/opt/packages\n/srv/fanfare/apps\n",
        }.items():
            (self.root / name).write_text(text, encoding="utf-8")

    def _command(self) -> list[str]:
        targets = {  # the interpreter may be that of /usr, so the sources are not unique
            "/usr": "/usr",
            "/opt/python": sys.base_prefix,
            "/opt/packages": sysconfig.get_path("purelib"),
            **{f"/srv/fanfare/{name}": deployments.REPOSITORY / name for name in ("apps", "myproject")},
        }
        return [
            parts.executable("systemd-nspawn"),
            f"--directory={self.root}",
            f"--machine=fanfare-{self.port}",
            "--register=no",
            *([] if Path("/run/systemd/system").exists() else ["--keep-unit"]),
            "--link-journal=no",
            "--resolv-conf=off",
            "--timezone=off",
            *(f"--bind-ro={source}:{target}" for target, source in targets.items()),
            "--boot",
            "systemd.unit=basic.target",
        ]

    def wait_until_booted(self) -> None:
        def booted() -> bool:
            if self._nspawn.poll() is not None:
                parts.refused("a machine with systemd", self._log.read_text(errors="replace"))
            return (
                bool(psutil.Process(self._nspawn.pid).children()) and self.ask("is-active", "basic.target") == "active"
            )

        waiting.until(booted, BOOT_S, "systemd has booted")

    def enter(self, *command: str, process: int | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command in the machine, or in the mount namespace of one of its processes."""
        target = process or psutil.Process(self._nspawn.pid).children()[0].pid
        spaces = ["--mount"] if process else ["--mount", "--pid", "--uts", "--ipc"]
        return subprocess.run(
            ["nsenter", f"--target={target}", *spaces, *command],
            env={"PATH": "/usr/bin:/usr/sbin"},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def ask(self, *arguments: str) -> str:
        return self.enter("systemctl", *arguments).stdout.strip()

    def systemctl(self, *arguments: str) -> None:
        done = self.enter("systemctl", *arguments)
        assert done.returncode == 0, f"{arguments}: {done.stderr}\n{self.journal()}"

    def journal(self) -> str:
        return self.enter("journalctl", "--no-pager", "--unit=fanfare").stdout

    def stop(self) -> None:
        if self._nspawn.poll() is None:
            everything = psutil.Process(self._nspawn.pid).children(recursive=True)
            self._nspawn.terminate()
            try:
                self._nspawn.wait(20)
            except subprocess.TimeoutExpired:
                for process in everything:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.kill()
                self._nspawn.kill()
                self._nspawn.wait()

    # -- the server --------------------------------------------------------------------------------------------------

    def socket_url(self, key: str) -> str:
        return f"ws://{servers.HOST}:{self.port}/app/{key}?protocol=7&client=tests&version=1.0.0"

    def master(self) -> psutil.Process | None:
        """gunicorn's, as the tests' own PID namespace numbers it."""
        served = [
            process
            for process in psutil.Process(self._nspawn.pid).children(recursive=True)
            if "gunicorn" in " ".join(process.cmdline())
        ]
        return next((one for one in served if one.parent() not in served), None)

    def workers(self) -> set[int]:
        master = self.master()
        return {child.pid for child in master.children()} if master is not None else set()

    def wait_until_ready(self, besides: set[int]) -> set[int]:
        """Four workers, none of which is one of `besides`. Returns them."""

        def ready() -> set[int] | None:
            try:
                found = self.workers()
                with calls.Caller(self) as caller:
                    status = caller.call("GET", "/health/ready").status
            except (OSError, ValueError, calls.http.client.HTTPException, psutil.NoSuchProcess):
                return None
            return found if status == 200 and len(found) == 4 and not found & besides else None

        try:
            found = waiting.until(ready, servers.START_SECONDS, "the service is ready")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.ask('status', 'fanfare')}\n{self.journal()[-4_000:]}") from error
        assert found is not None
        return found


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """The service is enabled and runs."""
    if os.geteuid():
        parts.refused("a machine with systemd", os.strerror(1))
    if not os.access(SYSTEMD, os.X_OK):
        parts.absent("systemd is not installed")
    machine = Machine(tmp_path_factory.mktemp("machine") / "root")
    try:
        machine.wait_until_booted()
        machine.systemctl("enable", "--now", "fanfare")
        machine.wait_until_ready(set())
        yield machine
        assert "Traceback" not in machine.journal()
    finally:
        machine.stop()


def test_service_runs_confined(machine: Machine) -> None:
    master = machine.master()
    assert master is not None
    assert set(master.uids()) == {UID}
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{master.pid}/status").read_text().splitlines())
    assert int(status["CapBnd"], 16) == 0
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    most = min(65536, resource.getrlimit(resource.RLIMIT_NOFILE)[1])  # a container cannot raise the limit of its host
    assert re.search(rf"Max open files +{most} ", Path(f"/proc/{master.pid}/limits").read_text())
    assert "Read-only file system" in machine.enter("touch", "/srv/fanfare/x", process=master.pid).stderr
    assert machine.enter("ls", "-ld", "/var/lib/fanfare").stdout.startswith("drwx------")


async def test_reload_replaces_the_workers_and_refuses_no_connection(machine: Machine) -> None:
    before, stop = machine.workers(), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        try:
            knocks = pool.submit(knock, machine.port, stop)
            async with sockets.connect(machine) as socket:
                await socket.subscribe("news")
                machine.systemctl("reload", "fanfare")
                assert await socket.closed(within=60.0) in RECONNECT_CODES
            machine.wait_until_ready(before)
        finally:
            stop.set()
        assert knocks.result() > 0
    async with sockets.connect(machine) as socket:
        await socket.subscribe("news")
        with calls.Caller(machine) as caller:
            caller.publish("news", "after", "1")
        await socket.skip_to("after", "news")


def test_killed_master_is_started_again(machine: Machine) -> None:
    before, master = machine.workers(), machine.master()
    assert master is not None
    master.send_signal(signal.SIGKILL)
    machine.wait_until_ready(before)
    assert machine.ask("show", "--property=NRestarts", "fanfare") == "NRestarts=1"


def test_connections_wait_in_the_socket_unit_while_the_service_restarts(machine: Machine) -> None:
    machine.systemctl("stop", "fanfare")
    assert machine.ask("show", "--property=Result", "fanfare") == "Result=success"
    machine.systemctl("enable", "--now", "fanfare.socket")
    assert machine.workers() == set()
    with create_connection((servers.HOST, machine.port)):  # which starts the service
        before = machine.wait_until_ready(set())
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        try:
            knocks = pool.submit(knock, machine.port, stop)
            machine.systemctl("restart", "fanfare")
            machine.wait_until_ready(before)
        finally:
            stop.set()
        assert knocks.result() > 0


def knock(port: int, stop: threading.Event) -> int:
    """Connect again and again until `stop`; the number of connections. Raises ConnectionRefusedError."""
    connections = 0
    while not stop.wait(0.05):
        with create_connection((servers.HOST, port)):
            connections += 1
    return connections
