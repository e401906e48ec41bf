"""Print a token for SSE connections, to try them with curl."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from fanfare import errors
from fanfare.integration import tokens, users


class Command(BaseCommand):
    help = "Print a token with which EventSource or curl can read these channels, including private ones."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("channels", metavar="CHANNEL", nargs="+", help="a name; * matches any characters")
        parser.add_argument("--user", metavar="ID", help="the user of the token")
        parser.add_argument(
            "--seconds",
            metavar="N",
            type=int,
            default=tokens.TOKEN_SECONDS,
            help=f"the lifetime; {tokens.TOKEN_SECONDS} by default",
        )
        parser.add_argument(
            "--app", metavar="ID", help="an application's id; by default that of the default application"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            user = None if options["user"] is None else users.named(options["user"])
            token = tokens.sse_token(options["channels"], user_id=user, seconds=options["seconds"], app=options["app"])
        except (errors.FanfareError, ValueError) as error:
            raise CommandError(str(error)) from error
        self.stdout.write(token)
