"""A server under load: a child process pinned to one core."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

from tests.harness import deployments, servers
from tests.load import errors, machine

RIVALS = Path(__file__).parent / "rivals"  # npm packages, one folder each

START_S = 30.0
STOP_S = 3.0  # then SIGKILL: a server that is still busy would disturb the next measurement
PAUSE_S = 0.05
LOG_LINES = 30  # of the server's log, in the error message
ROUTINE = ("WebSocket /", "connection open", "connection closed", 'HTTP/1.1" 200')


class Process(NamedTuple):
    pid: int
    port: int


@contextlib.contextmanager
def running(
    command: Sequence[str], port: int, environment: Mapping[str, str], *, core: int | None, log: Path
) -> Iterator[Process]:
    """A program that listens on `port`; terminated at the end. Raises NotStarted. `core`: None means all cores."""
    with log.open("ab") as output, machine.pinned(core):
        child = subprocess.Popen(
            command,
            cwd=deployments.REPOSITORY,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait_until_listening(child, port, log)
        yield Process(child.pid, port)
    except Exception as error:
        state = "runs" if child.poll() is None else f"ended with {child.returncode}"
        error.add_note(f"the server {state}; its log ends with:\n{_tail(log)}")
        raise
    finally:
        child.terminate()
        try:
            child.wait(STOP_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def own(command: Sequence[str]) -> list[str]:
    """`command` with its program from this Python environment."""
    program, *arguments = command
    return [str(Path(sys.executable).parent / program), *arguments]


def only_child(process: Process) -> Process:
    """The only worker of a server with a master process."""
    deadline = time.monotonic() + START_S
    while len(children := psutil.Process(process.pid).children()) != 1:
        if time.monotonic() > deadline:
            raise errors.NotStarted(f"the server has {len(children)} workers instead of one")
        time.sleep(PAUSE_S)
    return Process(children[0].pid, process.port)


def output(program: str, *arguments: str) -> str:
    """The output of a program; empty if the program does not exist."""
    path = shutil.which(program)
    if path is None:
        return ""
    said = subprocess.run([path, *arguments], capture_output=True, text=True, timeout=START_S, check=False)
    return (said.stdout or said.stderr).strip()


def relative(folder: Path) -> str:
    """`folder` relative to the repository."""
    return os.path.relpath(folder, deployments.REPOSITORY)


def _tail(log: Path) -> str:
    """The end of a log without the lines for each connection and request."""
    lines = log.read_text(errors="replace").splitlines()
    telling = [line for line in lines if not any(sign in line for sign in ROUTINE)]
    return "\n".join(telling[-LOG_LINES:])


def _wait_until_listening(child: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while True:
        with socket.socket() as probe:
            if probe.connect_ex((servers.HOST, port)) == 0:
                return
        if child.poll() is not None or time.monotonic() > deadline:
            raise errors.NotStarted(f"{child.args!r} does not listen on port {port}\n{_tail(log)}")
        time.sleep(PAUSE_S)
