"""The Dockerfile's command as a container runs it: any user of group 0, and a read-only root."""

from __future__ import annotations

import errno
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import psutil
import pytest

from tests.deploys import ways
from tests.harness import deployments, parts, servers, waiting

USER = 54_321  # no user of this machine has it
CLOSED = 0o001  # the missing permission of a folder that other users may not enter


@pytest.fixture
def folder() -> Iterator[Path]:
    """A data folder as of the image: of group 0, which may write to it. pytest's own are closed to other users."""
    with tempfile.TemporaryDirectory(prefix="fanfare-image-", dir="/tmp", ignore_cleanup_errors=True) as made:
        path = Path(made)
        path.chmod(0o770)
        yield path


def mounts(folder: Path) -> str:
    """Shell commands: only /tmp can be written, and interpreter and repository can be read by all users."""
    closed = defaultdict(list)
    for path in (Path(sys.base_prefix), Path(sys.prefix), deployments.REPOSITORY):
        for parent in reversed(path.parents):
            if not parent.stat().st_mode & CLOSED:
                closed[parent].append(path)
                break
    commands = ["mount --bind /tmp /tmp"]
    again = []
    for parent, paths in closed.items():
        again.append(f"mount -t tmpfs -o mode=755 tmpfs {parent}")
        for path in paths:
            kept = folder / f"mount-{len(commands)}"
            commands.append(f"mkdir {kept} && mount --bind {path} {kept}")
            again.append(f"mkdir -p {path} && mount --bind {kept} {path}")
        again.append(f"mount -o remount,bind,ro {parent}")
    root = deployments.REPOSITORY  # may be below /tmp
    read_only = [f"mount --bind {root} {root}", *(f"mount -o remount,bind,ro {path}" for path in (root, "/"))]
    return " && ".join([*commands, *again, *read_only, f"cd {root}"])


def test_command_of_the_image_serves_as_any_user_with_a_read_only_root(folder: Path, tmp_path: Path) -> None:
    ways.require_namespaces()
    parts.executable("setpriv")
    if os.geteuid():
        parts.refused("the change to another user", os.strerror(errno.EPERM))
    port = servers.free_port()
    command = ways.container(port)[-3:]
    assert command[:2] == ["sh", "-c"]
    command[2] = f"! touch /fanfare && ! touch {deployments.REPOSITORY}/fanfare && {command[2]}"
    user = ["setpriv", f"--reuid={USER}", "--regid=0", "--clear-groups", *command]
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*ways.NAMESPACE, "sh", "-c", f"{mounts(folder)} && exec {shlex.join(user)}"],
            cwd=deployments.REPOSITORY,
            env={
                "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.defpath)),
                "HOME": "/tmp",
                "PYTHONDONTWRITEBYTECODE": "1",
                "FANFARE_DATA_DIR": str(folder),
                "FANFARE_ENV_FILE": os.devnull,
                "WEB_CONCURRENCY": "1",
            },
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def is_ready() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            with urlopen(f"http://{servers.HOST}:{port}/health/ready", timeout=5) as response:
                return bool(response.status == 200)
        except (URLError, OSError):
            return False

    try:
        waiting.until(is_ready, servers.START_SECONDS, "the server is ready")
        (first,) = psutil.Process(process.pid).children()
        assert first.uids().effective == USER
        assert first.gids().effective == 0
        first.send_signal(signal.SIGTERM)
        assert process.wait(servers.STOP_SECONDS) == 0
    finally:
        for one in servers.processes_of_group(process.pid):
            one.kill()
        process.wait()
    assert log.read_text().count("Read-only file system") == 2
