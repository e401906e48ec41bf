"""Prepare a new deployment: create the tables, a first application and an admin user.

A second run changes nothing.
"""

from __future__ import annotations

import secrets
import shlex
from typing import Any

from django import db
from django.contrib.auth import get_user_model
from django.core.exceptions import FieldDoesNotExist, ValidationError
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError
from django.db import transaction

from fanfare import conf
from fanfare.applications import database, declarations, loading, models

ADMIN = "admin"
ADMIN_EMAIL = "admin@example.com"  # for user models that sign in with an email address
PASSWORD_BYTES = 15  # of randomness: 20 characters
NO_ADMIN = "no user yet; create one with `manage.py createsuperuser`"

# The demo's room keeps its last messages. Without the demo the rule has no effect.
DEMO_RULE = {"pattern": "presence-demo", "history_size": 50, "history_seconds": 86_400, "rewind_count": 50}


class Command(BaseCommand):
    help = "Migrate the database, create an application and an admin user if there are none, and print how to connect."

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            call_command("migrate", interactive=False, verbosity=0)
            create_application()
            application = loading.fetch_default()
            admin = create_admin()
        except db.Error as error:
            raise CommandError(database.explain(error)) from None
        except ValidationError as error:
            raise CommandError("; ".join(error.messages)) from None

        address = url(conf.settings.HOST, conf.settings.PORT)
        lines = [f"Fanfare     {address}", f"Admin       {address}admin/"]
        if admin is not None:
            lines.append(f"            {admin}")
        if application is None:
            lines.append(
                "Application none is enabled; create one in the admin or with `manage.py createapplication NAME`"
            )
        else:
            lines += [
                f"Application {application.name}",
                f"            FANFARE_APP_ID={shlex.quote(application.id)}",
                f"            FANFARE_APP_KEY={shlex.quote(application.key)}",
                f"            FANFARE_APP_SECRET={shlex.quote(application.secret)}",
            ]
        self.stdout.write("\n".join(["", *lines, ""]))


def create_admin() -> str | None:
    """Create a superuser with a random password if there is none, and return a line about it.

    A project may have replaced the user model. Where a superuser needs values that only its people know, none is
    created and the line says so: the database is migrated by now, so this must not fail.
    """
    users: Any = get_user_model()  # a model of the project, with any fields
    objects, name_field = users._default_manager, users.USERNAME_FIELD
    name = ADMIN_EMAIL if _is_email(users, name_field) else ADMIN
    if objects.filter(**{name_field: name}).exists() or _has_superuser(users):
        return None
    if not all(_is_email(users, field) for field in users.REQUIRED_FIELDS):
        return NO_ADMIN
    password = secrets.token_urlsafe(PASSWORD_BYTES)
    values = {name_field: name, "password": password, **dict.fromkeys(users.REQUIRED_FIELDS, "")}
    try:
        with transaction.atomic(using=objects.db):
            objects.create_superuser(**values)
    except (AttributeError, TypeError, ValueError, ValidationError, db.Error):
        return NO_ADMIN
    return f"user {name}, password {password} (shown only once; change it in the admin)"


def _is_email(users: Any, field: str) -> bool:
    return isinstance(users._meta.get_field(field), db.models.EmailField)


def _has_superuser(users: Any) -> bool:
    try:
        users._meta.get_field("is_superuser")
    except FieldDoesNotExist:
        return False
    return bool(users._default_manager.filter(is_superuser=True).exists())


def create_application() -> None:
    """Create the applications that FANFARE_APPS declares; without any, one to begin with."""
    if conf.settings.APPS:
        declarations.sync(declarations.parse(conf.settings.APPS))
    elif not models.Application.objects.exists():
        application = models.Application(name="First application", client_events=True)
        application.full_clean()
        application.save()
        models.ChannelRule(application=application, **DEMO_RULE).save()


def url(host: str, port: int) -> str:
    """The address for a browser on this machine of a server that listens on `host`."""
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    return f"http://{name}:{port}/"
