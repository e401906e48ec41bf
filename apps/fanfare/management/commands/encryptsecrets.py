"""Encrypt all secrets in the database with the first key of FANFARE_SECRET_ENCRYPTION_KEYS."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import transaction
from django.db.models import F, TextField
from django.db.models.functions import Cast

from fanfare import conf
from fanfare.applications import database, models
from fanfare.applications.models import encrypted

FIELDS = ("secret", "previous_secret")


class Command(BaseCommand):
    help = (
        "Encrypt the secrets of all applications with the first key of FANFARE_SECRET_ENCRYPTION_KEYS. Run it after a "
        "key was added, and before an old one is removed."
    )

    def handle(self, **_options: Any) -> None:
        if not conf.settings.SECRET_ENCRYPTION_KEYS:
            raise CommandError("FANFARE_SECRET_ENCRYPTION_KEYS is empty: there is no key to encrypt with.")
        rows = models.Application.objects.using(database.alias())
        written = 0
        with transaction.atomic(using=database.alias()):
            stored = {f"stored_{name}": Cast(F(name), TextField()) for name in FIELDS}
            for application in rows.annotate(**stored).select_for_update():
                if not all(encrypted.is_current(getattr(application, f"stored_{name}")) for name in FIELDS):
                    application.save(update_fields=[*FIELDS, "updated_at"])
                    written += 1
        self.stdout.write(f"Encrypted the secrets of {written} of {rows.count()} applications with the first key.")
