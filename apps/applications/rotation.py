"""Replacing an application's secret."""

from __future__ import annotations

from apps.applications import credentials, errors, models


def rotate_secret(application: models.Application) -> None:
    """Give the application a new secret and save it. The old one is refused from then on; open connections stay.

    Raises DeclaredApplicationError where the secret comes from FANFARE_APPS.
    """
    if application.declared:
        raise errors.DeclaredApplicationError(
            f"The secret of application {application.app_id} comes from FANFARE_APPS: change it there and restart."
        )
    application.secret = credentials.generate_secret()
    application.save(update_fields=["secret", "updated_at"])
