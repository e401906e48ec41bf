"""Set up, then serve on this machine with DEBUG and reload: what `make run` does."""

from __future__ import annotations

import os
import sys
from typing import Any

from django.conf import settings
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError

from fanfare import conf
from fanfare.server.listening import listening_problem


class Command(BaseCommand):
    help = (
        "Set up, then run uvicorn with --reload on FANFARE_HOST:FANFARE_PORT, with DEBUG unless FANFARE_DEBUG turns "
        "it off."
    )

    def handle(self, *args: Any, **options: Any) -> None:
        host, port = conf.settings.HOST, conf.settings.PORT
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
