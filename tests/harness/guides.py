"""Follow a how-to guide in a fresh project: write its files, run its commands, keep its servers running.

A project is what `django-admin startproject mysite .` makes, in a virtual environment with the built wheel. Servers
listen on a free port in place of the guide's 8000 or 8001.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shlex
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.harness import packages, servers, waiting
from tests.harness.deployments import Application, parse_credentials
from tests.unit.docs import pages

HOST = servers.HOST
START_S = 90.0  # the first start of a fresh environment compiles every module
STOP_S = 20.0
SERVERS = ("uvicorn", "gunicorn", "daphne")


class Process:
    """One server of a project. `ready_at`: a path that answers 200 when it serves."""

    def __init__(
        self, command: list[str], port: int, root: Path, environment: Mapping[str, str], log: Path, ready_at: str
    ) -> None:
        self.command, self.port, self.log = command, port, log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                command,
                cwd=root,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        waiting.until(lambda: self._answers(ready_at), START_S, f"{shlex.join(command)} serves")

    def _answers(self, path: str) -> bool:
        assert self.process.poll() is None, f"{shlex.join(self.command)} ended:\n{self.log_text()}"
        try:
            return self.get(path)[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    def request(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> tuple[int, str, dict[str, str]]:
        """Status, body and headers (names in lower case)."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=15)
        try:
            connection.request(method, path, body, dict(headers or {}))
            response = connection.getresponse()
            text = response.read().decode(errors="replace")
            return response.status, text, {name.lower(): value for name, value in response.getheaders()}
        finally:
            connection.close()

    def get(self, path: str) -> tuple[int, str, dict[str, str]]:
        return self.request("GET", path)

    def url(self, path: str = "/") -> str:
        return f"http://{HOST}:{self.port}{path}"

    def socket_url(self, application: Application, prefix: str = "") -> str:
        return f"ws://{HOST}:{self.port}{prefix}/app/{application.key}?protocol=7&client=tests&version=1.0.0"

    def log_text(self) -> str:
        return self.log.read_text(errors="replace")

    def stop(self) -> None:
        """End it as an operator would. Raises AssertionError if that takes too long."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(STOP_S)
            waiting.until(lambda: not servers.processes_of_group(self.process.pid), 5.0, "no process is left behind")
        finally:
            for process in servers.processes_of_group(self.process.pid):
                process.kill()
            self.process.wait(STOP_S)


class Reader:
    """Follows one guide after the other in a fresh project called `mysite`."""

    def __init__(self, site: packages.Site, folder: Path) -> None:
        self.site = site
        self.root = folder / "project"
        self.root.mkdir(parents=True)
        site("-m", "django", "startproject", "mysite", str(self.root), cwd=self.root)
        self.variables: dict[str, str] = {}  # that the guide tells to set
        self.application: Application | None = None  # that `createapplication` printed
        self.processes: list[Process] = []
        self._logs = folder

    @property
    def environment(self) -> dict[str, str]:
        path = os.pathsep.join([str(self.site.folder / "bin"), os.environ.get("PATH", "")])
        return packages.clean_environment({"PATH": path, "PYTHONWARNINGS": "default", **self.variables})

    def follow(self, page: Path, heading: str) -> None:
        """Do what stands below this heading of a page, except for servers, which `serve` starts."""
        found = [block for where, block in pages.steps(page) if where == heading]
        assert found, f"{page.name} has no {heading!r}"
        for block in found:
            if block.language == "shell":
                for command in block.text.splitlines():
                    self._type(command)
            elif block.file:
                self.write(block)

    def write(self, block: pages.Block) -> None:
        file = self.root / block.file
        file.parent.mkdir(parents=True, exist_ok=True)
        if block.language == "diff":
            text = file.read_text(encoding="utf-8")
            if '"django.contrib.staticfiles"' in text or 'path("admin/"' in text:  # the newest startproject
                block = block._replace(text=block.text.replace("'", '"'))
        pages.apply(file, block)

    def _type(self, command: str) -> None:
        if match := re.fullmatch(r"(FANFARE_\w+)=(\S+)", command):
            self.variables[match[1]] = match[2]
            return
        words = shlex.split(command)
        if words[0] == "pip" or words[0] in SERVERS or words[:3] == ["python", "manage.py", "runserver"]:
            return
        printed = packages.run([str(self.site.python), *words[1:]], cwd=self.root, environment=self.environment)
        if "createapplication" in words:
            self.application = parse_credentials(printed)

    def manage(self, *arguments: str) -> str:
        return packages.run(
            [str(self.site.python), "manage.py", *arguments], cwd=self.root, environment=self.environment
        )

    def serve(self, command: str, *, ready_at: str = "/health/ready", **variables: str) -> Process:
        """Start a server as the guide writes it, on a free port. Environment variables may stand before it."""
        words = shlex.split(command)
        while "=" in words[0]:
            name, _, value = words.pop(0).partition("=")
            variables[name] = value
        port = servers.free_port()
        if words[:2] == ["python", "manage.py"]:
            words = [str(self.site.python), *words[1:], str(port)]
        else:
            assert words[0] in SERVERS, command
            words = [self.site.program(words[0]), *_on_port(words[1:], words[0], port)]
        log = self._logs / f"{len(self.processes)}-{Path(words[0]).name}.log"
        process = Process(words, port, self.root, {**self.environment, **variables}, log, ready_at)
        self.processes.append(process)
        return process

    def stop(self) -> None:
        with contextlib.ExitStack() as stack:
            for process in self.processes:
                stack.callback(process.stop)


def commands(page: Path, program: str) -> list[str]:
    """The guide's commands that start this program, with the variables before it."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^    ((?:\w+=\S+ )*{re.escape(program)}(?: .+)?)$", text, re.MULTILINE)


@contextlib.contextmanager
def reader(site: packages.Site, folder: Path) -> Iterator[Reader]:
    found = Reader(site, folder)
    try:
        yield found
    finally:
        found.stop()


def _on_port(arguments: list[str], program: str, port: int) -> list[str]:
    kept = []
    waiting_for_value = False
    for argument in arguments:
        if waiting_for_value:
            waiting_for_value = False
        elif argument in ("--port", "--bind", "-b", "-p"):
            waiting_for_value = True
        else:
            kept.append(argument)
    return [*kept, "--bind", f"{HOST}:{port}"] if program == "gunicorn" else [*kept, "--port", str(port)]


def cookies(headers: Mapping[str, Any]) -> str:
    """The value of a Cookie header that sends back what a response has set."""
    return "; ".join(part.split(";")[0].strip() for part in re.split(r", (?=\w+=)", str(headers.get("set-cookie", ""))))
