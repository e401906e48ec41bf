"""Set up, then serve on this machine with DEBUG and reload: what `make run` does."""

from __future__ import annotations

import errno
import os
import socket
import sys
from typing import Any

from django.conf import settings
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError


class Command(BaseCommand):
    help = (
        "Set up, then run uvicorn with --reload on FANFARE_HOST:FANFARE_PORT, with DEBUG unless FANFARE_DEBUG says no."
    )

    def handle(self, *args: Any, **options: Any) -> None:
        host, port = settings.FANFARE_HOST, settings.FANFARE_PORT
        problem = listening_problem(host, port)
        if problem:
            raise CommandError(problem)
        call_command("setup", stdout=self.stdout, stderr=self.stderr)
        command = ["uvicorn", "myproject.asgi:application", "--reload", "--host", host, "--port", str(port)]
        self.stdout.write(f"$ {' '.join(command)}\n")
        self.stdout.flush()
        os.environ.setdefault("FANFARE_DEBUG", "1")  # a value in the environment or in .env stands there by now
        os.chdir(settings.BASE_DIR)
        # In place of this process, so that Ctrl+C and signals reach the server itself.
        os.execv(sys.executable, [sys.executable, "-m", *command])


def listening_problem(
    host: str, port: int, *, host_name: str = "FANFARE_HOST", port_name: str = "FANFARE_PORT"
) -> str | None:
    """Why nothing can listen there, in one sentence; None if something can.

    `host_name`, `port_name`: what the person who chose them calls them.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except socket.gaierror as error:
        return f"{host_name} is {host!r}, which is no address of this machine ({error.strerror})."
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        # As servers do: connections that end do not count.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen(1)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return f"Port {port} of {host} is taken: end what listens there, or choose another with {port_name}."
            if error.errno == errno.EACCES:
                return f"Port {port} needs a privilege that this user lacks: choose one above 1023 with {port_name}."
            return f"Nothing can listen on {host}, port {port}: {error.strerror}."
    return None
