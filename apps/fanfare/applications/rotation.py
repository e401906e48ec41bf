"""Replacing an application's secret, with a time in which the old one still works.

Without that time every server would be refused between the rotation and the moment when it has the new secret.
"""

from __future__ import annotations

import datetime as dt

from django.db import router, transaction
from django.utils import timezone

from fanfare import conf
from fanfare.applications import credentials, errors, models


def grace() -> dt.timedelta:
    """How long the old secret works after a rotation; zero: not at all."""
    return dt.timedelta(seconds=conf.settings.SECRET_GRACE_SECONDS)


def rotate_secret(application: models.Application, *, end_old: bool = False) -> None:
    """Give the application a new secret and save it. Open connections stay.

    The old secret works for `grace()`, or is refused at once with `end_old`. Only one is old: the secret before it is
    refused at once in any case. Raises DeclaredApplicationError where the secret comes from FANFARE_APPS.
    """
    with transaction.atomic(using=_database(application)):
        _read_again(application)
        if end_old or not grace():
            _forget_previous(application)
        else:
            application.previous_secret = application.secret
            application.previous_secret_until = timezone.now() + grace()
        application.secret = credentials.generate_secret()
        application.save(update_fields=["secret", "previous_secret", "previous_secret_until", "updated_at"])


def end_previous_secret(application: models.Application) -> None:
    """Refuse the old secret from now on. Raises DeclaredApplicationError where FANFARE_APPS declares it."""
    with transaction.atomic(using=_database(application)):
        _read_again(application)
        _forget_previous(application)
        application.save(update_fields=["previous_secret", "previous_secret_until", "updated_at"])


def _read_again(application: models.Application) -> None:
    """Of two rotations at once the second must find the secret of the first, and not make the same one old again."""
    models.Generation.lock(_database(application))
    application.refresh_from_db(fields=["secret", "previous_secret", "previous_secret_until", "declared"])
    if application.declared:
        raise errors.DeclaredApplicationError(
            f"The secret of application {application.app_id} comes from FANFARE_APPS: change it there and restart."
        )


def _database(application: models.Application) -> str:
    return router.db_for_write(models.Application, instance=application)


def _forget_previous(application: models.Application) -> None:
    application.previous_secret = ""
    application.previous_secret_until = None
