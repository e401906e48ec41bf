"""Send the events that wait in the outbox."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import Error

from fanfare import errors
from fanfare.applications import database
from fanfare.engine import current
from fanfare.integration import outbox, publishing, relay


class Command(BaseCommand):
    help = (
        "Send the events that processes left in the outbox, as a worker does. It is meant for a project without "
        "workers of its own, which publishes to another deployment (FANFARE_REMOTE_URL). It runs until it is "
        "interrupted."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--once", action="store_true", help="send the events that wait now, and exit")

    def handle(self, *args: Any, **options: Any) -> None:
        if not options["once"]:
            with contextlib.suppress(KeyboardInterrupt):
                asyncio.run(relay.Relay().run())
            return
        before = publishing.statistics()
        try:
            waiting = asyncio.run(_once())
        except (errors.FanfareError, Error) as error:
            raise CommandError(f"The events stay in the outbox: {database.reason(error)}") from error
        after = publishing.statistics()
        sent, failed = (after[name] - before[name] for name in ("outbox_relayed", "outbox_failed"))
        self.stdout.write(f"Sent: {sent}. Failed: {failed}. Still waiting: {waiting}.")


async def _once() -> int:
    """Two looks at each database: the first leaves new rows to the process that writes them. Answers the rows that
    still wait."""
    outboxes = [relay.Outbox(current.current(), alias) for alias in outbox.databases()]
    try:
        for pause_s in (relay.LOOK_S, 0.0):
            for one in outboxes:
                await one.look()
            await asyncio.sleep(pause_s)
        return sum([await database.run(outbox.count, one.alias) for one in outboxes])
    finally:
        for one in outboxes:
            one.close()
