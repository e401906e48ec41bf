"""The application: a tenant with its credentials, switches and limits."""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Iterator
from typing import Self

from django.apps import apps
from django.core import validators
from django.core.exceptions import ValidationError
from django.db import models, router, transaction
from django.utils import timezone

from fanfare import conf
from fanfare.applications import credentials, errors, limits, origins
from fanfare.applications.models import announced, encrypted
from fanfare.applications.models.generation import Generation


def validate_origins(text: str) -> None:
    faults = origins.faults(text)
    if faults:
        raise ValidationError(faults)


_SECRET_VALIDATOR = validators.RegexValidator(
    credentials.SECRET, "The secret has 1 to 128 printable ASCII characters and no space."
)


def _number(name: str) -> models.PositiveIntegerField[int | None, int | None]:
    return models.PositiveIntegerField(null=True, blank=True, validators=[limits.AtLeast(name), limits.AtMost(name)])


class ApplicationQuerySet(announced.AnnouncedQuerySet["Application"]):
    def with_parts(self) -> Self:
        """With webhooks and rules, from the same database: a router may read related rows from another one."""
        return self.prefetch_related(
            *(
                models.Prefetch(name, apps.get_model("fanfare", model)._default_manager.using(self.db))
                for name, model in (("webhooks", "WebhookEndpoint"), ("rules", "ChannelRule"))
            )
        )


class Application(announced.Announced):
    """A tenant: clients connect with its key, servers sign with its secret. Channels belong to one application."""

    APP_ID = "app_id"

    app_id = models.CharField(
        "app id",
        max_length=15,
        unique=True,
        default=credentials.generate_id,
        validators=[validators.RegexValidator(credentials.ID, "The id has 1 to 15 digits and starts with no zero.")],
        error_messages={"unique": "Another application has this id."},
        help_text="Part of the URL to which servers publish. It cannot be changed later.",
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
    secret = encrypted.SecretField(
        default=credentials.generate_secret,
        validators=[_SECRET_VALIDATOR],
        help_text="It allows publishing to every channel, so it must not reach browsers or phones.",
    )
    # The secret before the last rotation. It stays valid until the time below; without a time, until it is ended.
    previous_secret = encrypted.SecretField(blank=True, default="", editable=False, validators=[_SECRET_VALIDATOR])
    previous_secret_until = models.DateTimeField(null=True, blank=True, editable=False)
    name = models.CharField(
        max_length=100,
        unique=True,
        error_messages={"unique": "Another application has this name."},
    )
    enabled = models.BooleanField(
        default=True, help_text="A disabled application refuses all requests, and its connections are closed at once."
    )
    client_events = models.BooleanField(
        default=False, help_text="Clients may send events to each other on private and presence channels."
    )
    subscription_counts = models.BooleanField(
        default=False,
        help_text="Subscribers get the number of subscribers of their channel, except on presence channels.",
    )
    allowed_origins = models.TextField(
        blank=True,
        default="",
        validators=[validate_origins],
        help_text="The sites whose pages may connect, one per line: https://example.com, example.com or *.example.com. "
        "Empty: all sites.",
    )

    # NULL: the default of registry.Application.
    authorization_timeout = _number("authorization_timeout")
    cache_seconds = _number("cache_seconds")

    # NULL: the default of registry.Limits.
    max_connections = _number("max_connections")
    max_event_bytes = _number("max_event_bytes")
    max_channels_per_event = _number("max_channels_per_event")
    max_batch_events = _number("max_batch_events")
    max_channel_name = _number("max_channel_name")
    max_event_name = _number("max_event_name")
    max_presence_members = _number("max_presence_members")
    max_member_bytes = _number("max_member_bytes")
    max_user_id = _number("max_user_id")
    max_watchlist = _number("max_watchlist")
    max_events_per_second = _number("max_events_per_second")
    client_events_per_second = _number("client_events_per_second")
    client_events_burst = _number("client_events_burst")

    declared = models.BooleanField(
        default=False,
        editable=False,
        help_text="The application is defined by FANFARE_APPS, which overwrites this row.",
    )
    created_at = models.DateTimeField("created", auto_now_add=True)
    updated_at = models.DateTimeField("updated", auto_now=True)

    objects = ApplicationQuerySet.as_manager()

    class Meta:
        ordering = ("name",)

    def __str__(self) -> str:
        return self.name

    @property
    def announced_app_id(self) -> str:
        return self.app_id

    @property
    def previous_secret_works(self) -> bool:
        until = self.previous_secret_until
        return bool(self.previous_secret) and (until is None or timezone.now() < until)

    # -- rotation of the secret ----------------------------------------------------------------------------------------

    def rotate_secret(self, *, end_old: bool = False) -> None:
        """Save a new secret. Open connections stay open.

        The old secret stays valid for FANFARE_SECRET_GRACE_SECONDS, so that the servers that sign with it can be
        updated; with `end_old` it is refused at once. A secret before the old one is refused at once. Raises
        DeclaredApplicationError if the secret comes from FANFARE_APPS.
        """
        grace = dt.timedelta(seconds=conf.settings.SECRET_GRACE_SECONDS)
        with self._locked_secrets():
            if end_old or not grace:
                self._clear_previous_secret()
            else:
                self.previous_secret = self.secret
                self.previous_secret_until = timezone.now() + grace
            self.secret = credentials.generate_secret()

    def end_previous_secret(self) -> None:
        """Refuse the old secret from now on. Raises DeclaredApplicationError if it comes from FANFARE_APPS."""
        with self._locked_secrets():
            self._clear_previous_secret()

    @contextlib.contextmanager
    def _locked_secrets(self) -> Iterator[None]:
        """Read the secrets under a lock, and save them at the end: concurrent rotations run one after the other."""
        using = router.db_for_write(Application, instance=self)
        with transaction.atomic(using=using):
            Generation.lock(using)
            self.refresh_from_db(fields=["secret", "previous_secret", "previous_secret_until", "declared"])
            if self.declared:
                raise errors.DeclaredApplicationError(
                    f"The secret of application {self.app_id} comes from FANFARE_APPS: change it there and restart."
                )
            yield
            self.save(update_fields=["secret", "previous_secret", "previous_secret_until", "updated_at"])

    def _clear_previous_secret(self) -> None:
        self.previous_secret = ""
        self.previous_secret_until = None
