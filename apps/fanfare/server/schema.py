"""The state of Django's database and its migrations, for the health page."""

from __future__ import annotations

import asyncio
import logging
import time

from django import db

from fanfare.applications import database
from fanfare.runtime import supervisor, text
from fanfare.runtime.log_throttle import LogThrottle, exception_line

logger = logging.getLogger(__name__)
_log = LogThrottle(logger)

REMEMBERED_SECONDS = 2.0  # so that frequent health checks do not load the database
PATIENCE_SECONDS = 0.5  # a probe times out after a second, but a pool waits ten seconds for an unavailable database


class Schema:
    """The database's state, cached for a moment. Concurrent calls share one query."""

    def __init__(self) -> None:
        self.was_complete = False  # all migrations were applied; a running process needs no new ones
        self._question: asyncio.Task[str] | None = None
        self._tasks = supervisor.Supervisor(logger)
        self._answered_at = float("-inf")  # time.monotonic()

    async def problem(self) -> str:
        """The fault, in one sentence; empty if there is none."""
        question = self._question
        if question is None or (question.done() and time.monotonic() - self._answered_at > REMEMBERED_SECONDS):
            question = self._question = self._tasks.spawn("health query", database.run(self._ask))
        await asyncio.wait([question], timeout=PATIENCE_SECONDS)
        return question.result() if question.done() else "The database does not answer."

    def _ask(self) -> str:
        try:
            found = self._answer()
        except db.Error as error:
            problem = database.explain(error)
        except Exception as error:  # noqa: BLE001  (the health page must say it, and not fail)
            problem = f"The database cannot be used: {text.clean(exception_line(error))}."
        else:
            return found
        finally:
            self._answered_at = time.monotonic()
        _log.warning("%s", problem, key="database")
        return problem

    def _answer(self) -> str:
        if self.was_complete:
            with db.connections[database.alias()].cursor() as cursor:
                cursor.execute("SELECT 1")
            return ""
        self.was_complete = database.is_migrated()
        return "" if self.was_complete else "The database is not migrated: run `python manage.py migrate`."
