"""Reads and writes of the outbox table, synchronous, in a given database.

A row holds one event of `publish` and the idempotency key that the log checks. The process that wrote the row and the
relay may both send it, more than once: the event is in the log once, as long as the log knows the key.
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple, TypeVar

from django.db import connections, router
from django.db.models import QuerySet
from django.utils import timezone

from fanfare.engine import interface
from fanfare.integration import models

T = TypeVar("T")

CHUNK = 500  # rows that are read, sent and deleted together, to limit statements and memory
KEY_PREFIX = "outbox-"

Model = models.OutboxEvent


class Row(NamedTuple):
    """A row that may be sent."""

    id: int
    publication: interface.Publication


class Batch:
    """The rows of one transaction, which the process that wrote them sends together."""

    def __init__(self, using: str) -> None:
        self.using = using
        self._rows: dict[int, tuple[uuid.UUID, interface.Publication]] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def write(self, publications: Sequence[interface.Publication]) -> None:
        """Write the rows in the current transaction of this thread. Raises django.db.Error, for example without the
        table.
        """
        rows = Model.objects.using(self.using).bulk_create([_row(publication) for publication in publications])
        for row, publication in zip(rows, publications, strict=True):
            key = publication.idempotency_key or key_of(row.uid)
            self._rows[row.pk] = row.uid, publication._replace(idempotency_key=key)

    def committed(self) -> list[Row]:
        """The rows that exist after the commit: rolled back savepoints have removed theirs. Call it once."""
        rows, self._rows = list(self._rows.items()), {}
        found = []
        for chunk in chunks(rows):
            waiting = _waiting(self.using).filter(pk__in=[pk for pk, _ in chunk])
            there = dict(waiting.values_list("pk", "uid"))
            found += [Row(pk, publication) for pk, (uid, publication) in chunk if there.get(pk) == uid]
        return found


def chunks(rows: Sequence[T]) -> Iterator[Sequence[T]]:
    return (rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK))


def key_of(uid: uuid.UUID) -> str:
    """The idempotency key of a row that was published without one."""
    return f"{KEY_PREFIX}{uid.hex}"


def is_own_key(key: str | None) -> bool:
    return key is not None and key.startswith(KEY_PREFIX)


def databases() -> list[str]:
    """The aliases of the databases where the project's routers allow the table, except replicas."""
    return [
        alias
        for alias in connections
        if router.allow_migrate_model(alias, Model) and not connections.settings[alias]["TEST"]["MIRROR"]
    ]


def top(using: str) -> int:
    """The id of the newest waiting row; 0 if there is none."""
    return _waiting(using).order_by("-pk").values_list("pk", flat=True).first() or 0


def count(using: str) -> int:
    """The number of waiting rows."""
    return _waiting(using).count()


def waiting(using: str, after: int, upto: int) -> list[models.OutboxEvent]:
    """The next rows, oldest first."""
    return list(_waiting(using).filter(pk__gt=after, pk__lte=upto).order_by("pk")[:CHUNK])


def discard(using: str, ids: Collection[int]) -> None:
    """Delete rows that are in the log."""
    Model.objects.using(using).filter(pk__in=ids).delete()


def fail(using: str, id_: int, reason: str) -> None:
    """Mark a row that cannot be sent."""
    Model.objects.using(using).filter(pk=id_).update(failed_at=timezone.now(), reason=reason)


def retry(using: str, ids: Collection[int]) -> int:
    """Let the relay retry failed rows. Returns their number."""
    failed = Model.objects.using(using).filter(pk__in=ids, failed_at__isnull=False)
    return failed.update(failed_at=None, reason="")


def trim(using: str, keep_seconds: float) -> int:
    """Delete old failed rows. Returns their number."""
    before = timezone.now() - dt.timedelta(seconds=keep_seconds)
    return Model.objects.using(using).filter(failed_at__lt=before).delete()[0]


def _waiting(using: str) -> QuerySet[models.OutboxEvent]:
    return Model.objects.using(using).filter(failed_at=None)


def _row(publication: interface.Publication) -> models.OutboxEvent:
    return Model(
        app_id=publication.app,
        channel=publication.channel,
        frame=publication.body.decode(),
        exclude=publication.exclude or "",
        idempotency_key=publication.idempotency_key or "",
    )
