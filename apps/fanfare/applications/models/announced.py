"""Rows whose changes reach all workers.

A write raises the generation in its transaction. After the commit it appends an `application.changed` CONTROL entry to
the log. The entry is a hint: a worker that misses it finds the change by its generation.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable
from typing import Any, ClassVar, TypeVar
from weakref import WeakKeyDictionary

from django.core.exceptions import ValidationError
from django.db import models, router, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from fanfare.applications import test_environment
from fanfare.applications.models.generation import Generation
from fanfare.engine import current, errors, interface

COMMAND = "application.changed"
TIMEOUT_SECONDS = 2.0  # a user waits for the page; without the entry the workers find the change within ten seconds

logger = logging.getLogger(__name__)

# Application ids to announce at the commit, by connection (so by thread): one append per transaction. After a rollback
# they stay until the next commit of the connection, which costs one needless reload.
_waiting: WeakKeyDictionary[BaseDatabaseWrapper, dict[str, None]] = WeakKeyDictionary()

Row_co = TypeVar("Row_co", bound="Announced", covariant=True)


class AnnouncedQuerySet(models.QuerySet[Row_co]):
    def update(self, **kwargs: Any) -> int:
        with transaction.atomic(using=self._written()):
            Generation.bump(self.db)
            app_ids = self._app_ids()
            rows = super().update(**kwargs)
            after_commit(app_ids, self.db)
        return rows

    def delete(self) -> tuple[int, dict[str, int]]:
        with transaction.atomic(using=self._written()):
            Generation.bump(self.db)
            app_ids = self._app_ids()
            deleted = super().delete()
            after_commit(app_ids, self.db)
        return deleted

    delete.alters_data = True  # type: ignore[attr-defined]  # as Django's own methods: templates cannot call it,
    delete.queryset_only = True  # type: ignore[attr-defined]  # and `objects.delete()` does not exist

    def bulk_create(self, objs: Iterable[Row_co], *args: Any, **kwargs: Any) -> list[Row_co]:
        created = list(objs)
        with transaction.atomic(using=self._written()):
            Generation.bump(self.db)
            created = super().bulk_create(created, *args, **kwargs)
            after_commit([row.announced_app_id for row in created], self.db)
        return created

    def _app_ids(self) -> list[str]:
        return list(self.values_list(self.model.APP_ID, flat=True))

    def _written(self) -> str:
        self._for_write = True
        return self.db


class Announced(models.Model):
    """A row that is, or belongs to, an application."""

    APP_ID: ClassVar[str]  # the lookup of that application's id

    class Meta:
        abstract = True

    def save(
        self,
        *args: Any,
        force_insert: bool | tuple[models.base.ModelBase, ...] = False,
        force_update: bool = False,
        using: str | None = None,
        update_fields: Iterable[str] | None = None,
    ) -> None:
        using = using or router.db_for_write(type(self), instance=self)
        with transaction.atomic(using=using):
            Generation.bump(using)
            super().save(
                *args, force_insert=force_insert, force_update=force_update, using=using, update_fields=update_fields
            )
            after_commit([self.announced_app_id], using)

    def delete(self, using: str | None = None, keep_parents: bool = False) -> tuple[int, dict[str, int]]:
        using = using or router.db_for_write(type(self), instance=self)
        with transaction.atomic(using=using):
            Generation.bump(using)
            app_id = self.announced_app_id
            deleted = super().delete(using=using, keep_parents=keep_parents)
            after_commit([app_id], using)
        return deleted

    @property
    def announced_app_id(self) -> str:
        raise NotImplementedError

    def problems(self) -> dict[str, str]:
        """The first error of each invalid field, by field name. Does not compare with other rows."""
        try:
            self.clean_fields(exclude=[field.name for field in self._meta.fields if field.is_relation])
        except ValidationError as error:
            return {field: messages[0] for field, messages in error.message_dict.items()}
        return {}


def fixture_loaded(instance: Announced, raw: bool, using: str, **_: Any) -> None:
    """Signal handler: `loaddata` writes rows without calling `save`."""
    if raw:
        Generation.bump(using)
        # A query, not `instance.application`: a fixture may contain the row before its application.
        loaded = type(instance)._default_manager.using(using).filter(pk=instance.pk)
        after_commit(loaded.values_list(instance.APP_ID, flat=True), using)


# -- announcements -----------------------------------------------------------------------------------------------------


def after_commit(app_ids: Iterable[str], using: str) -> None:
    """Announce the applications when the current transaction of the database `using` commits."""
    connection = transaction.get_connection(using)
    _waiting.setdefault(connection, {}).update(dict.fromkeys(app_ids))
    transaction.on_commit(functools.partial(_announce_waiting, connection), using=using)


def announce(app_ids: Iterable[str]) -> None:
    """Make all workers reload these applications. Raises nothing: the change itself is committed."""
    publications = [
        interface.Publication(app=app_id, channel=COMMAND, body=app_id.encode(), kind=interface.Kind.CONTROL)
        for app_id in app_ids
    ]
    if not publications or test_environment.is_active():
        return
    try:
        current.current().append_blocking(publications, timeout=TIMEOUT_SECONDS)
    except errors.EngineError as error:
        logger.warning(
            "Applications %s changed, but the announcement failed (%s). The workers find the change within seconds.",
            ", ".join(publication.app for publication in publications),
            error,
        )
    except Exception:
        logger.exception("The announcement of changed applications failed. The workers find the change within seconds.")


def _announce_waiting(connection: BaseDatabaseWrapper) -> None:
    announce(_waiting.pop(connection, {}))
