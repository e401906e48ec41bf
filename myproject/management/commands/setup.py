"""Make an installation ready to serve: the database's tables, a first application, an admin user.

Run again it changes nothing.
"""

from __future__ import annotations

import secrets
import shlex
from typing import Any

from django import db
from django.contrib.auth import get_user_model
from django.core.exceptions import ValidationError
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError

from fanfare import conf
from fanfare.applications import database, declarations, declared, loading, models

ADMIN = "admin"
PASSWORD_BYTES = 15  # of randomness: 20 characters

# What was said in the demo's room is there for who comes later. Without the demo it costs nothing.
DEMO_RULE = {"pattern": "presence-demo", "history_size": 50, "history_seconds": 86_400, "rewind_count": 50}


class Command(BaseCommand):
    help = (
        "Migrate the database, create a first application and an admin user where there are none, print how to connect."
    )

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            call_command("migrate", interactive=False, verbosity=0)
            password = create_admin()
            create_application()
            application = loading.fetch_default()
        except db.Error as error:
            raise CommandError(database.explain(error)) from None
        except ValidationError as error:
            raise CommandError("; ".join(error.messages)) from None

        address = url(conf.settings.HOST, conf.settings.PORT)
        lines = [f"Fanfare     {address}", f"Admin       {address}admin/"]
        if password is not None:
            lines.append(f"            user {ADMIN}, password {password} (shown this once; change it in the admin)")
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
    """An admin user with a password that nobody chose; None where there is somebody who may enter already."""
    users = get_user_model()
    if users.objects.filter(is_superuser=True).exists() or users.objects.filter(username=ADMIN).exists():
        return None
    password = secrets.token_urlsafe(PASSWORD_BYTES)
    users.objects.create_superuser(username=ADMIN, email="", password=password)
    return password


def create_application() -> None:
    """Those that FANFARE_APPS declares, or one to begin with."""
    if conf.settings.APPS:
        declared.sync(declarations.parse(conf.settings.APPS))
    elif not models.Application.objects.exists():
        application = models.Application(name="First application", client_events=True)
        application.full_clean()
        application.save()
        models.ChannelRule(application=application, **DEMO_RULE).save()


def url(host: str, port: int) -> str:
    """The address for a browser on this machine of a server that listens on `host`."""
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    return f"http://{name}:{port}/"
