"""`manage.py runserver` with WebSockets, the HTTP API and SSE connections.

It takes Django's arguments, makes Django's checks and prints what Django prints; then uvicorn serves, with its
reloader.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import sysconfig
from pathlib import Path
from typing import Any

from django.core.management import CommandError, CommandParser
from django.core.management.base import OutputWrapper
from django.core.management.commands import runserver
from django.db import connections
from django.utils import autoreload

from fanfare import conf
from fanfare.server import development
from fanfare.server.listening import listening_problem

EVERYWHERE = {"0": "0.0.0.0"}  # noqa: S104  (Django's short form)


class Command(runserver.Command):
    help = "Start uvicorn for development, with WebSockets and static files."

    addr: str  # both set by Django's `handle`
    port: str

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("addrport", nargs="?", help="Optional port number, or ipaddr:port")
        parser.add_argument("--ipv6", "-6", action="store_true", dest="use_ipv6", help="Use an IPv6 address.")
        parser.add_argument(
            "--noreload", action="store_false", dest="use_reloader", help="Do not restart when a file changes."
        )
        # Of Django's other servers, for scripts that have them: uvicorn has no thread for each request, and static
        # files are served with DEBUG and without.
        for flag in ("--nothreading", "--nostatic", "--insecure"):
            parser.add_argument(flag, action="store_true", help=argparse.SUPPRESS)

    def handle(self, *args: Any, **options: Any) -> None:
        self.default_addr, self.default_port = conf.settings.HOST, str(conf.settings.PORT)
        super().handle(*args, **options)

    def run(self, **options: Any) -> None:
        """Called by Django's `handle`, which has read the address."""
        autoreload.raise_last_exception()  # django.setup() failed, and Django left it to the reloaded process to say so
        host, port = EVERYWHERE.get(self.addr, self.addr), int(self.port)
        if not options["skip_checks"]:
            self.stdout.write("Performing system checks...\n\n")
            self.check(display_num_errors=True)
        self.check_migrations()
        connections.close_all()
        problem = listening_problem(host, port, host_name="The address", port_name="`runserver PORT`")
        if problem:
            raise CommandError(problem)
        hint = development.hint()
        if hint:
            self.stderr.write(self.style.WARNING(hint))
        self.on_bind(port)
        self.stdout.flush()
        folder = _project_folder()
        os.environ["PYTHONPATH"] = os.pathsep.join(_project_paths(options["pythonpath"]))
        command = [sys.executable, "-m", "uvicorn", "--factory", development.FACTORY]
        command += ["--host", host, "--port", str(port), "--app-dir", folder]
        if options["use_reloader"]:
            command += ["--reload", "--reload-dir", folder]
        # In place of this process, so that Ctrl+C and signals reach the server itself.
        os.execv(sys.executable, command)

    def on_bind(self, server_port: int) -> None:
        """Print Django's lines, which name the kind of the server since 6.1."""
        own, printed = self.stdout, io.StringIO()
        self.stdout = OutputWrapper(printed)
        try:
            super().on_bind(server_port)
        finally:
            self.stdout = own
        self.stdout.write(printed.getvalue().replace("WSGI development server", "ASGI development server"))


def _project_folder() -> str:
    """That of manage.py."""
    return os.path.abspath(sys.path[0] or os.curdir)  # noqa: PTH100  (a link stays a link)


def _project_paths(more: str | None) -> list[str]:
    """The import path as manage.py has left it, without what every Python of this environment has."""
    installed = tuple(os.path.realpath(path) for path in sysconfig.get_paths().values())
    found = [*([more] if more else []), *sys.path]
    return [path for path in dict.fromkeys(found) if path and Path(path).is_dir() and not _is_below(path, installed)]


def _is_below(path: str, folders: tuple[str, ...]) -> bool:
    resolved = os.path.realpath(path)
    return any(resolved == folder or resolved.startswith(folder + os.sep) for folder in folders)
