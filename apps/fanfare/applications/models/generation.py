"""The generation: a counter by which a worker detects that its registry is out of date."""

from __future__ import annotations

import secrets
from typing import Any

from django.db import connections, models


def unrepeated_start() -> int:
    """A random start, so that a worker notices that the table was emptied."""
    return secrets.randbelow(2**40)


class Generation(models.Model):
    """One row with a number that every change replaces. A worker that has another number reloads all applications."""

    ROW = 1

    value = models.BigIntegerField(default=unrepeated_start)

    def __str__(self) -> str:
        return str(self.value)

    @classmethod
    def current(cls, using: str | None = None) -> int | None:
        """None if no application was ever written."""
        return cls._default_manager.using(using).filter(pk=cls.ROW).values_list("value", flat=True).first()

    @classmethod
    def bump(cls, using: str) -> None:
        """Call it in the transaction of the change, before the change: writers then queue here and cannot deadlock."""
        cls._write(using, models.F("value") + 1)

    @classmethod
    def lock(cls, using: str) -> None:
        """Block all other writers until the end of this transaction. An update locks the row on every database."""
        cls._write(using, models.F("value"))

    @classmethod
    def _write(cls, using: str, value: Any) -> None:
        rows = cls._default_manager.using(using)
        if rows.filter(pk=cls.ROW).update(value=value):
            return
        # An upsert locks the row of another writer exclusively. InnoDB would share the lock after a refused INSERT, and
        # two writers with it would deadlock at the UPDATE.
        named = connections[using].features.supports_update_conflicts_with_target
        rows.bulk_create(
            [cls(pk=cls.ROW)],
            update_conflicts=True,
            update_fields=["value"],
            unique_fields=["pk"] if named else None,
        )
