from __future__ import annotations

import datetime as dt

import pytest
from django.utils import timezone
from pytest_django import Settings

from fanfare.applications import credentials, errors
from fanfare.applications.models import Application
from tests.unit.applications import fakes

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def application() -> Application:
    return Application.objects.create(name="Shop", app_id="1", secret="first")


def test_secret_is_replaced_and_the_key_is_not(application: Application, log: fakes.Log) -> None:
    key = application.key
    application.rotate_secret()
    application.refresh_from_db()
    assert application.secret != "first"
    assert credentials.SECRET.match(application.secret)
    assert application.key == key
    assert log.announced == ["1", "1"]


def test_old_secret_is_valid_during_the_grace_period(application: Application, settings: Settings) -> None:
    settings.FANFARE = {"SECRET_GRACE_SECONDS": 600}
    before = timezone.now()
    application.rotate_secret()
    application.refresh_from_db()
    assert application.previous_secret == "first"
    assert application.previous_secret_works
    until = application.previous_secret_until
    assert until is not None
    assert before <= until - dt.timedelta(seconds=600) <= timezone.now()


def test_old_secret_is_refused_after_the_grace_period(application: Application) -> None:
    application.rotate_secret()
    application.previous_secret_until = timezone.now()
    assert not application.previous_secret_works


def test_second_rotation_ends_the_secret_before_the_old_one(application: Application) -> None:
    application.rotate_secret()
    second = application.secret
    application.rotate_secret()
    assert application.previous_secret == second


def test_concurrent_rotations_keep_the_secret_of_the_first_as_the_old_one(
    application: Application,
) -> None:
    stale = Application.objects.get()
    application.rotate_secret()
    stale.rotate_secret()
    assert stale.previous_secret == application.secret


@pytest.mark.parametrize(("seconds", "end_old"), [(0, False), (600, True)])
def test_without_a_grace_period_the_old_secret_is_refused_at_once(
    application: Application, settings: Settings, seconds: int, end_old: bool
) -> None:
    application.rotate_secret()
    settings.FANFARE = {"SECRET_GRACE_SECONDS": seconds}
    application.rotate_secret(end_old=end_old)
    application.refresh_from_db()
    assert (application.previous_secret, application.previous_secret_until) == ("", None)


def test_grace_period_can_be_ended(application: Application, log: fakes.Log) -> None:
    application.rotate_secret()
    log.publications.clear()
    application.end_previous_secret()
    application.refresh_from_db()
    assert (application.previous_secret, application.previous_secret_until) == ("", None)
    assert log.announced == ["1"]


def test_secret_of_a_declared_application_cannot_be_rotated() -> None:
    application = Application.objects.create(
        name="Shop", app_id="1", secret="given", previous_secret="before", declared=True
    )
    for change in (application.rotate_secret, application.end_previous_secret):
        with pytest.raises(errors.DeclaredApplicationError, match="FANFARE_APPS") as caught:
            change()
        assert "given" not in str(caught.value)
    application.refresh_from_db()
    assert (application.secret, application.previous_secret) == ("given", "before")
