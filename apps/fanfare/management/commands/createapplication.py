"""Create an application and print its credentials as shell lines."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import transaction

from fanfare.applications import database, errors, models
from fanfare.management import rule_flags

VALUES = ("app_id", "key", "secret", "authorization_timeout", "max_connections", "max_event_bytes")
FLAGS = {"app_id": "--id", "key": "--key", "secret": "--secret", "name": "NAME"}


class Command(BaseCommand):
    help = "Create an application. Its id, key and secret go to standard output as shell lines, and nothing else does."

    def add_arguments(self, parser: CommandParser) -> None:
        # Values are read as text and judged by the model, so that a wrong one is one sentence here as everywhere.
        parser.add_argument("name", metavar="NAME", help="what people call it; unique")
        parser.add_argument("--id", dest="app_id", metavar="N", help="digits; generated if not given")
        parser.add_argument("--key", metavar="K", help="what clients connect with; generated if not given")
        parser.add_argument("--secret", metavar="S", help="what servers sign with; generated if not given")
        parser.add_argument("--client-events", action="store_true", help="clients may send events to each other")
        parser.add_argument(
            "--subscription-counts", action="store_true", help="subscribers hear how many they are on their channel"
        )
        parser.add_argument(
            "--authorization-timeout",
            metavar="N",
            help="seconds to sign in or join a private or presence channel; unbounded if not given",
        )
        parser.add_argument(
            "--webhook",
            dest="webhooks",
            metavar="URL",
            action="append",
            default=[],
            help="tell this URL what happens on the channels; may be given several times",
        )
        rule_flags.add_arguments(parser)
        parser.add_argument("--max-connections", metavar="N", help="in the whole deployment; unbounded if not given")
        parser.add_argument("--max-event-bytes", metavar="N", help="of an event's data; 102400 if not given")
        parser.add_argument("--disabled", action="store_true", help="create it, but refuse everything for now")

    def handle(self, *args: Any, **options: Any) -> None:
        given = {column: options[column] for column in VALUES if options[column] is not None}
        application = models.Application(
            name=options["name"],
            client_events=options["client_events"],
            subscription_counts=options["subscription_counts"],
            enabled=not options["disabled"],
            **given,
        )
        endpoints = [models.WebhookEndpoint(url=url) for url in options["webhooks"]]
        parts: list[models.WebhookEndpoint | models.ChannelRule] = [*endpoints, *rule_flags.read(options)]
        try:
            with database.explained(), transaction.atomic():
                self._check(application, endpoints)
                application.save()
                for part in parts:
                    part.application = application
                    part.save()
        except errors.DatabaseUnusableError as error:
            raise CommandError(str(error)) from None
        for variable, value in (
            ("FANFARE_APP_ID", application.app_id),
            ("FANFARE_APP_KEY", application.key),
            ("FANFARE_APP_SECRET", application.secret),
        ):
            self.stdout.write(f"{variable}={shlex.quote(value)}")

    def _check(self, application: models.Application, endpoints: Sequence[models.WebhookEndpoint]) -> None:
        try:
            application.full_clean()
        except ValidationError as error:
            column, messages = next(iter(error.message_dict.items()))
            raise CommandError(f"{FLAGS.get(column, '--' + column.replace('_', '-'))}: {messages[0]}") from None
        for number, endpoint in enumerate(endpoints, start=1):
            for problem in endpoint.problems().values():
                flag = "--webhook" if len(endpoints) == 1 else f"--webhook, number {number}"
                raise CommandError(f"{flag}: {problem}")
