"""The models of the console."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from django.contrib.auth.models import Permission
from django.core.management import call_command

from fanfare.applications.models import Application

pytestmark = pytest.mark.django_db(transaction=True)


def rights() -> set[str]:
    return set(Permission.objects.filter(codename__endswith="_4242").values_list("codename", flat=True))


@pytest.mark.parametrize("option", ["--natural-foreign", "--all"])
def test_whole_database_can_be_dumped_and_loaded(option: str, tmp_path: Path) -> None:
    Application.objects.create(app_id="4242", name="Shop")
    known = rights()
    assert "view_console_4242" in known
    dump = tmp_path / "dump.json"
    call_command("dumpdata", option, output=dump, stdout=io.StringIO())
    Application.objects.get().delete()
    assert rights() == set()
    call_command("loaddata", dump, stdout=io.StringIO())
    assert Application.objects.get().app_id == "4242"
    assert rights() == known


def test_application_of_a_fixture_without_permissions_gets_them(tmp_path: Path) -> None:
    Application.objects.create(app_id="4242", name="Shop")
    known = rights()
    dump = tmp_path / "dump.json"
    call_command("dumpdata", "fanfare", output=dump, stdout=io.StringIO())
    Application.objects.get().delete()
    call_command("loaddata", dump, stdout=io.StringIO())
    assert rights() == known
