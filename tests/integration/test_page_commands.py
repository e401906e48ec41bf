"""Commands of the pages run as written, in a shell, beside a server: those for which the table in
docs/reference/proof.md names this file. The port, the key and the position of an event are those of the test.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import calls, deployments, postgresql, servers
from tests.unit.docs import pages, test_commands

OWN = "tests/integration/test_page_commands.py"
ENDLESS = ("fanfare tail", "curl -N")
KEYS = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
NOT_OF_THE_TEST = ("FANFARE_DATA_DIR", "FANFARE_ENGINE", "DATABASE_URL")  # a page's settings that name other machines

# What a command prints, by a part of it.
PRINTS = {
    "createapplication": r"^FANFARE_APP_ID=",
    "check --deploy": r"no issues",
    "manage.py setup": r"FANFARE_APP_SECRET=",
    "encryptsecrets": r"\d",
    "fanfare revoke": r"5d41402abc4b",
    "fanfare status": r"^(All is well|Something needs attention)\. 1 of 1 worker answered\.$",
    "fanfare tail": r"orders-7",
    "fanfare trace": r"published by HTTP API",
    "doctor --auth": r"KEY",
    "fanfare doctor": r"",
    "ssetoken": r"\S{20}",
    "/metrics": r"^fanfare_connections\{?.* \d",
    "/health/ready": r'"ready"|"ok"',
    "curl -N": r"created",
    "ENCRYPTION_MASTER_KEY": r"no issues",
}


def commands() -> list[pages.Command]:
    rows = pages.command_rows()
    found = {
        command.text: command
        for command in test_commands.commands()
        if next(row for row in rows if row.covers(command)).proof == f"`{OWN}`"
    }
    return list(found.values())


@pytest.fixture(scope="module")
def cluster() -> Iterator[postgresql.Cluster]:
    with postgresql.running() as found:
        found.create("fanfare")
        yield found


def settings_of(command: pages.Command) -> dict[str, str]:
    """The settings that the page names above the command."""
    lines = [line.text for line in pages.shell_lines(pages.ROOT / command.page) if line.line < command.line]
    found = dict(line.split("=", 1) for line in lines if re.fullmatch(r"[A-Z_]+=[^ $…]+", line))
    return {name: value for name, value in found.items() if name not in NOT_OF_THE_TEST}


@contextlib.contextmanager
def publishing(server: servers.Server) -> Iterator[None]:
    """Publish again and again: a command that shows new events begins to read at a time of its own."""
    stopped = threading.Event()

    def publish() -> None:
        while not stopped.wait(0.5):
            for channel in ("orders-7", "news"):
                calls.publish(server, channel, "created", "{}")

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


@pytest.mark.parametrize("command", commands(), ids=lambda command: f"{Path(command.page).stem}-{command.line}")
def test_command_of_a_page_prints_what_it_is_for(
    command: pages.Command, uvicorn: servers.Server, fleet: servers.Fleet, request: pytest.FixtureRequest
) -> None:
    deployment = uvicorn.deployment if "manage.py fanfare" in command.text else fleet.deployment()
    more = {"FANFARE_PORT": str(uvicorn.port), "FANFARE_SECRET_ENCRYPTION_KEYS": KEYS, **settings_of(command)}
    if command.page.endswith("how-to/postgresql.md"):
        more["DATABASE_URL"] = request.getfixturevalue("cluster").url("fanfare")
    environment = deployment.environment(**more)
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    text = command.text.replace(".venv/bin/", "").replace("runuser -u fanfare -- ", "")
    text = text.replace("YOUR_KEY", uvicorn.application.key).replace("127.0.0.1:8000/", f"127.0.0.1:{uvicorn.port}/")
    if "=$(" in text:  # a line of the environment
        text = f"export {text}; python manage.py check"
    follows = any(part in text for part in (*ENDLESS, "fanfare trace"))
    [wanted, *_] = [pattern for part, pattern in PRINTS.items() if part in text]
    with publishing(uvicorn) if follows else contextlib.nullcontext():
        if "0:4711" in text:
            text = text.replace("0:4711", newest_position(uvicorn))
        printed = run(text, environment, wanted, endless=any(part in text for part in ENDLESS))
    assert re.search(wanted, printed, re.MULTILINE), printed


def newest_position(server: servers.Server) -> str:
    url = server.url("").rstrip("/")
    tail = ("tail", "--channel", "orders-7", "--types", "events", "--limit", "1", "--url", url)
    return re.findall(r'"entry": ?"([^"]+)"', server.deployment.manage("fanfare", "--json", *tail))[0]


def run(text: str, environment: dict[str, str], wanted: str, *, endless: bool) -> str:
    """The output of a command. One without an end is stopped when it has printed what is wanted."""
    with subprocess.Popen(
        ["bash", "-o", "pipefail", "-c", f"exec {text}" if endless else text],
        cwd=deployments.REPOSITORY,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if endless and re.search(wanted, line):
                process.terminate()
                break
        process.wait()
    assert endless or process.returncode == 0, "".join(lines)
    return "".join(lines)
