"""Secrets at rest: what the database holds, and how a key is replaced."""

from __future__ import annotations

import base64
import io

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.management import CommandError, call_command
from django.db import connection
from django.test import override_settings

from fanfare.applications import loading
from fanfare.applications.models import Application, encrypted

pytestmark = pytest.mark.django_db(transaction=True)

OLD, NEW = (base64.b64encode(bytes([n]) * 32).decode() for n in (1, 2))


def keys(*given: str) -> override_settings:
    return override_settings(FANFARE={"SECRET_ENCRYPTION_KEYS": ",".join(given)})


def stored() -> tuple[str, str]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT secret, previous_secret FROM fanfare_application")
        row: tuple[str, str] = cursor.fetchone()
    return row


def report() -> str:
    out = io.StringIO()
    call_command("encryptsecrets", stdout=out)
    return out.getvalue()


def test_database_holds_no_plain_secret() -> None:
    with keys(OLD):
        application = Application.objects.create(name="Shop", secret="s3cret", previous_secret="0ld")
        assert all(text.startswith(encrypted.MARK) and "cret" not in text for text in stored())
        read = Application.objects.get()
        assert (read.secret, read.previous_secret) == ("s3cret", "0ld")
        found = loading.fetch(application.app_id)
        assert found is not None
        assert found.secret == "s3cret"


def test_longest_secret_fits_in_the_column() -> None:
    with keys(OLD):
        Application.objects.create(name="Shop", secret="x" * 128)
        assert len(stored()[0]) <= encrypted.WIDTH


def test_same_secret_has_another_text_each_time() -> None:
    with keys(OLD):
        assert encrypted.encrypt("s3cret") != encrypted.encrypt("s3cret")


def test_plain_row_is_read_with_keys_and_encrypted_by_the_command() -> None:
    Application.objects.create(name="Shop", secret="s3cret")
    assert stored() == ("s3cret", "")
    with keys(OLD):
        assert Application.objects.get().secret == "s3cret"
        assert "1 of 1" in report()
        assert stored()[0].startswith(encrypted.MARK)
        assert "0 of 1" in report()


def test_key_is_replaced_without_a_moment_in_which_a_secret_cannot_be_read() -> None:
    with keys(OLD):
        Application.objects.create(name="Shop", secret="s3cret")
    with keys(NEW, OLD):
        assert Application.objects.get().secret == "s3cret"
        report()
    with keys(NEW):
        assert Application.objects.get().secret == "s3cret"


def test_missing_key_is_reported_by_name() -> None:
    with keys(OLD):
        Application.objects.create(name="Shop", secret="s3cret")
    for given in (keys(NEW), keys()):
        with given, pytest.raises(ImproperlyConfigured, match="FANFARE_SECRET_ENCRYPTION_KEYS"):
            Application.objects.get()
    with pytest.raises(CommandError, match="no key"):
        report()
