"""The number by which a worker knows whether what it holds in memory is what the database says."""

from __future__ import annotations

import secrets
from typing import Any

from django.db import models


def unrepeated_start() -> int:
    """Where a new counter starts: not where the last one did, so that an emptied table is seen as a change."""
    return secrets.randbelow(2**40)


class Generation(models.Model):
    """One row, one number, raised by every change: a worker that holds another number reads all applications again."""

    ROW = 1

    value = models.BigIntegerField(default=unrepeated_start)

    def __str__(self) -> str:
        return str(self.value)

    @classmethod
    def current(cls, using: str | None = None) -> int | None:
        """None where no application was ever written."""
        return cls._default_manager.using(using).filter(pk=cls.ROW).values_list("value", flat=True).first()

    @classmethod
    def bump(cls, using: str) -> None:
        """Call it in the transaction of the change, before the change: so writers queue here, and none deadlocks."""
        cls._write(using, models.F("value") + 1)

    @classmethod
    def lock(cls, using: str) -> None:
        """Make all other writers wait for the end of this transaction. On every database an update locks."""
        cls._write(using, models.F("value"))

    @classmethod
    def _write(cls, using: str, value: Any) -> None:
        row = cls._default_manager.using(using).filter(pk=cls.ROW)
        if not row.update(value=value):
            cls._default_manager.using(using).get_or_create(pk=cls.ROW)
            row.update(value=value)
