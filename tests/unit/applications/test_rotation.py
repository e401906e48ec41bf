from __future__ import annotations

import pytest

from apps.applications import credentials, errors, rotation
from apps.applications.models import Application
from tests.unit.applications import fakes

pytestmark = pytest.mark.django_db(transaction=True)


def test_the_secret_is_replaced_and_nothing_else(log: fakes.Log) -> None:
    application = Application.objects.create(name="Shop", app_id="1")
    before, key = application.secret, application.key
    rotation.rotate_secret(application)
    application.refresh_from_db()
    assert application.secret != before
    assert credentials.SECRET.match(application.secret)
    assert application.key == key
    assert log.announced == ["1", "1"]


def test_the_secret_of_a_declared_application_is_changed_where_it_is_declared() -> None:
    application = Application.objects.create(name="Shop", app_id="1", secret="given", declared=True)
    with pytest.raises(errors.DeclaredApplicationError, match="FANFARE_APPS") as caught:
        rotation.rotate_secret(application)
    assert "given" not in str(caught.value)
    application.refresh_from_db()
    assert application.secret == "given"
