"""Rows whose every change reaches all workers: see the package's docstring."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, TypeVar

from django.core.exceptions import ValidationError
from django.db import models, router, transaction

from fanfare.applications import announcements
from fanfare.applications.models.generation import Generation

Row_co = TypeVar("Row_co", bound="Announced", covariant=True)


class AnnouncedQuerySet(models.QuerySet[Row_co]):
    def update(self, **kwargs: Any) -> int:
        with transaction.atomic(using=self._written()):
            Generation.bump(self.db)
            app_ids = self._app_ids()
            rows = super().update(**kwargs)
            announcements.after_commit(app_ids, self.db)
        return rows

    def delete(self) -> tuple[int, dict[str, int]]:
        with transaction.atomic(using=self._written()):
            Generation.bump(self.db)
            app_ids = self._app_ids()
            deleted = super().delete()
            announcements.after_commit(app_ids, self.db)
        return deleted

    delete.alters_data = True  # type: ignore[attr-defined]  # as Django's own: no template may call it,
    delete.queryset_only = True  # type: ignore[attr-defined]  # and `objects.delete()` does not exist

    def bulk_create(self, objs: Iterable[Row_co], *args: Any, **kwargs: Any) -> list[Row_co]:
        created = list(objs)
        with transaction.atomic(using=self._written()):
            Generation.bump(self.db)
            created = super().bulk_create(created, *args, **kwargs)
            announcements.after_commit([row.announced_app_id for row in created], self.db)
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
            announcements.after_commit([self.announced_app_id], using)

    def delete(self, using: str | None = None, keep_parents: bool = False) -> tuple[int, dict[str, int]]:
        using = using or router.db_for_write(type(self), instance=self)
        with transaction.atomic(using=using):
            Generation.bump(using)
            app_id = self.announced_app_id
            deleted = super().delete(using=using, keep_parents=keep_parents)
            announcements.after_commit([app_id], using)
        return deleted

    @property
    def announced_app_id(self) -> str:
        raise NotImplementedError

    def problems(self) -> dict[str, str]:
        """What is wrong with the values, other rows aside: the first sentence by field name. Empty: nothing."""
        try:
            self.clean_fields(exclude=[field.name for field in self._meta.fields if field.is_relation])
        except ValidationError as error:
            return {field: messages[0] for field, messages in error.message_dict.items()}
        return {}


def fixture_loaded(instance: Announced, raw: bool, using: str, **_: Any) -> None:
    """`loaddata` writes rows without calling `save`."""
    if raw:
        Generation.bump(using)
        # Asked of the database: a fixture may bring a row before the application that it belongs to.
        loaded = type(instance)._default_manager.using(using).filter(pk=instance.pk)
        announcements.after_commit(loaded.values_list(instance.APP_ID, flat=True), using)
