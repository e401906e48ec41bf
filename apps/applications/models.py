"""The tenants in the database, which is the truth about them.

Whatever changes a row of Application raises the generation in the same transaction, and announces the change after the
commit: `save`, `delete`, `bulk_create`, and a queryset's `update`, `bulk_update` and `delete`. Raw SQL does not; who
uses it calls `Generation.bump`, and the workers notice within seconds.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from typing import Any

from django.core import validators
from django.core.exceptions import ValidationError
from django.db import models, router, transaction

from apps.applications import announcements, credentials, limits, origins


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


class ApplicationQuerySet(models.QuerySet["Application"]):
    def update(self, **kwargs: Any) -> int:
        with transaction.atomic(using=self._written()):
            Generation.bump(self.db)
            app_ids = list(self.values_list("app_id", flat=True))
            rows = super().update(**kwargs)
            announcements.after_commit(app_ids, self.db)
        return rows

    def delete(self) -> tuple[int, dict[str, int]]:
        with transaction.atomic(using=self._written()):
            Generation.bump(self.db)
            app_ids = list(self.values_list("app_id", flat=True))
            deleted = super().delete()
            announcements.after_commit(app_ids, self.db)
        return deleted

    delete.alters_data = True  # type: ignore[attr-defined]  # as Django's own: no template may call it,
    delete.queryset_only = True  # type: ignore[attr-defined]  # and `objects.delete()` does not exist

    def bulk_create(self, objs: Iterable[Application], *args: Any, **kwargs: Any) -> list[Application]:
        created = list(objs)
        with transaction.atomic(using=self._written()):
            Generation.bump(self.db)
            created = super().bulk_create(created, *args, **kwargs)
            announcements.after_commit([application.app_id for application in created], self.db)
        return created

    def _written(self) -> str:
        self._for_write = True
        return self.db


def validate_origins(text: str) -> None:
    faults = origins.faults(text)
    if faults:
        raise ValidationError(faults)


class Application(models.Model):
    """A tenant: its clients connect with the key, its servers sign with the secret, nobody else sees its channels."""

    app_id = models.CharField(
        "app id",
        max_length=15,
        unique=True,
        default=credentials.generate_id,
        validators=[validators.RegexValidator(credentials.ID, "The id has 1 to 15 digits and starts with no zero.")],
        error_messages={"unique": "Another application has this id."},
        help_text="Part of the URL that servers publish to. It cannot be changed later.",
    )
    key = models.CharField(
        max_length=64,
        unique=True,
        default=credentials.generate_key,
        validators=[
            validators.RegexValidator(
                credentials.KEY,
                "The key has 1 to 64 letters, digits, dots, dashes or underscores; no dot or dash first.",
            )
        ],
        error_messages={"unique": "Another application has this key."},
        help_text="Public: clients connect with it.",
    )
    secret = models.CharField(
        max_length=128,
        default=credentials.generate_secret,
        validators=[
            validators.RegexValidator(
                credentials.SECRET, "The secret has 1 to 128 printable ASCII characters and no space."
            )
        ],
        help_text="Who has it can publish to every channel. It belongs on servers only.",
    )
    name = models.CharField(
        max_length=100,
        unique=True,
        error_messages={"unique": "Another application has this name."},
    )
    enabled = models.BooleanField(
        default=True, help_text="A disabled application refuses everything; its connections are closed at once."
    )
    client_events = models.BooleanField(
        default=False, help_text="Clients may send events to each other on private and presence channels."
    )
    allowed_origins = models.TextField(
        blank=True,
        default="",
        validators=[validate_origins],
        help_text="Whose pages may connect, one a line: https://example.com, example.com or *.example.com. Empty: any.",
    )

    # NULL: the default of registry.Limits.
    max_connections = models.PositiveIntegerField(
        null=True, blank=True, validators=[limits.AtLeast("max_connections"), limits.AtMost("max_connections")]
    )
    max_event_bytes = models.PositiveIntegerField(
        null=True, blank=True, validators=[limits.AtLeast("max_event_bytes"), limits.AtMost("max_event_bytes")]
    )
    max_channels_per_event = models.PositiveIntegerField(
        null=True,
        blank=True,
        validators=[limits.AtLeast("max_channels_per_event"), limits.AtMost("max_channels_per_event")],
    )
    max_batch_events = models.PositiveIntegerField(
        null=True, blank=True, validators=[limits.AtLeast("max_batch_events"), limits.AtMost("max_batch_events")]
    )
    max_channel_name = models.PositiveIntegerField(
        null=True, blank=True, validators=[limits.AtLeast("max_channel_name"), limits.AtMost("max_channel_name")]
    )
    max_event_name = models.PositiveIntegerField(
        null=True, blank=True, validators=[limits.AtLeast("max_event_name"), limits.AtMost("max_event_name")]
    )
    max_presence_members = models.PositiveIntegerField(
        null=True,
        blank=True,
        validators=[limits.AtLeast("max_presence_members"), limits.AtMost("max_presence_members")],
    )
    max_member_bytes = models.PositiveIntegerField(
        null=True, blank=True, validators=[limits.AtLeast("max_member_bytes"), limits.AtMost("max_member_bytes")]
    )
    max_user_id = models.PositiveIntegerField(
        null=True, blank=True, validators=[limits.AtLeast("max_user_id"), limits.AtMost("max_user_id")]
    )
    client_events_per_second = models.PositiveIntegerField(
        null=True,
        blank=True,
        validators=[limits.AtLeast("client_events_per_second"), limits.AtMost("client_events_per_second")],
    )
    client_events_burst = models.PositiveIntegerField(
        null=True, blank=True, validators=[limits.AtLeast("client_events_burst"), limits.AtMost("client_events_burst")]
    )

    declared = models.BooleanField(
        default=False, editable=False, help_text="FANFARE_APPS is the truth of this application; the row follows it."
    )
    created_at = models.DateTimeField("created", auto_now_add=True)
    updated_at = models.DateTimeField("updated", auto_now=True)

    objects = ApplicationQuerySet.as_manager()

    class Meta:
        ordering = ("name",)

    def __str__(self) -> str:
        return self.name

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
            announcements.after_commit([self.app_id], using)

    def delete(self, using: str | None = None, keep_parents: bool = False) -> tuple[int, dict[str, int]]:
        using = using or router.db_for_write(type(self), instance=self)
        with transaction.atomic(using=using):
            Generation.bump(using)
            deleted = super().delete(using=using, keep_parents=keep_parents)
            announcements.after_commit([self.app_id], using)
        return deleted

    def problems(self) -> dict[str, str]:
        """What is wrong with the values, uniqueness aside: the first sentence by field name. Empty: nothing."""
        try:
            self.clean_fields()
        except ValidationError as error:
            return {field: messages[0] for field, messages in error.message_dict.items()}
        return {}


def fixture_loaded(instance: Application, raw: bool, using: str, **_: Any) -> None:
    """`loaddata` writes rows without calling `save`."""
    if raw:
        Generation.bump(using)
        announcements.after_commit([instance.app_id], using)
