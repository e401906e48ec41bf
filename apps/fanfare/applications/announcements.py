"""Announces changed applications to all workers: a CONTROL entry of the log, after the change is committed.

The entry is a hint. The row in the database is the truth, and a worker that misses the hint finds the change by its
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
TIMEOUT_SECONDS = 2.0  # a person waits for the page; without the entry the workers find the change in ten seconds

logger = logging.getLogger(__name__)

# The ids that wait for the commit, by connection (so by thread): a transaction's many changes are one write of the log.
# After a rollback they stay until the next commit of this connection, which costs one needless reading.
_waiting: WeakKeyDictionary[BaseDatabaseWrapper, dict[str, None]] = WeakKeyDictionary()


def after_commit(app_ids: Iterable[str], using: str) -> None:
    """Announce the applications when the current transaction of the database `using` commits."""
    connection = transaction.get_connection(using)
    _waiting.setdefault(connection, {}).update(dict.fromkeys(app_ids))
    transaction.on_commit(functools.partial(_announce_waiting, connection), using=using)


def announce(app_ids: Iterable[str]) -> None:
    """Make all workers read these applications again. Raises nothing: the change itself is committed."""
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
            "Applications %s changed, but this could not be announced (%s). The workers find out within seconds.",
            ", ".join(publication.app for publication in publications),
            error,
        )
    except Exception:
        logger.exception("Changed applications could not be announced. The workers find out within seconds.")


def _announce_waiting(connection: BaseDatabaseWrapper) -> None:
    announce(_waiting.pop(connection, {}))
