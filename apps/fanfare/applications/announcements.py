"""Telling every worker that an application changed: a CONTROL entry of the log, after the change is committed.

The entry is a hint. The row in the database is the truth, and a worker that misses the hint finds the change by the
generation.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable
from weakref import WeakKeyDictionary

from django.db import transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from fanfare.engine import current, errors, interface

COMMAND = "application.changed"
TIMEOUT_SECONDS = 2.0  # a person waits for the page; the workers find the change without the entry ten seconds later

logger = logging.getLogger(__name__)

# The ids that wait for the commit, by connection (so by thread): a transaction's many changes are one write of the log.
# After a rollback they stay until the next commit of this connection, which costs a needless reload and no more.
_waiting: WeakKeyDictionary[BaseDatabaseWrapper, dict[str, None]] = WeakKeyDictionary()


def after_commit(app_ids: Iterable[str], using: str) -> None:
    """Announce the applications when the current transaction of the database `using` commits."""
    connection = transaction.get_connection(using)
    _waiting.setdefault(connection, {}).update(dict.fromkeys(app_ids))
    transaction.on_commit(functools.partial(_announce_waiting, connection), using=using)


def announce(app_ids: Iterable[str]) -> None:
    """Make every worker read these applications again. Never raises an EngineError: the change itself is done."""
    publications = [
        interface.Publication(app=app_id, channel=COMMAND, body=app_id.encode(), kind=interface.Kind.CONTROL)
        for app_id in app_ids
    ]
    if not publications:
        return
    try:
        current.current().append_blocking(publications, timeout=TIMEOUT_SECONDS)
    except errors.EngineError as error:
        logger.warning(
            "Applications %s changed, but the workers could not be told (%s); they will notice within seconds.",
            ", ".join(publication.app for publication in publications),
            error,
        )


def _announce_waiting(connection: BaseDatabaseWrapper) -> None:
    announce(_waiting.pop(connection, {}))
