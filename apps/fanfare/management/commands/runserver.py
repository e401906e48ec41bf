"""`manage.py runserver` with what Django's own cannot do: WebSockets, the HTTP API, streams.

It takes Django's arguments, makes Django's checks and says what Django says; then uvicorn serves, with its reloader.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from django.conf import settings
from django.core.management import CommandError, CommandParser
from django.core.management.commands import runserver
from django.db import connections
from django.utils import autoreload

from fanfare import conf
from fanfare.server.listening import listening_problem

EVERYWHERE = {"0": "0.0.0.0"}  # noqa: S104  (Django's short form)


class Command(runserver.Command):
    help = "Starts uvicorn for development, with WebSockets and static files."

    addr: str  # both set by Django's `handle`
    port: str

    def add_arguments(self, parser: CommandParser) -> None:
        # Not Django's own list: --nothreading says nothing about uvicorn, and a flag that does nothing is a lie.
        parser.add_argument("addrport", nargs="?", help="Optional port number, or ipaddr:port")
        parser.add_argument("--ipv6", "-6", action="store_true", dest="use_ipv6", help="Use an IPv6 address.")
        parser.add_argument(
            "--noreload", action="store_false", dest="use_reloader", help="Do not restart when a file changes."
        )

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
        self.on_bind(port)
        self.stdout.flush()
        if options["pythonpath"]:
            os.environ["PYTHONPATH"] = os.pathsep.join(
                [options["pythonpath"], *filter(None, [os.environ.get("PYTHONPATH")])]
            )
        os.chdir(settings.BASE_DIR)
        module, _, attribute = str(settings.ASGI_APPLICATION).rpartition(".")
        command = [sys.executable, "-m", "uvicorn", f"{module}:{attribute}", "--host", host, "--port", str(port)]
        if options["use_reloader"]:
            command.append("--reload")
        # In place of this process, so that Ctrl+C and signals reach the server itself.
        os.execv(sys.executable, command)
