from __future__ import annotations

import resource
import types

import pytest
from django.core import checks as django_checks
from django.core.management import call_command

from fanfare import checks
from fanfare.engine.local import place


def ids(found):
    return [message.id for message in found]


def test_the_project_as_it_comes_has_no_complaint(capsys):
    call_command("check")
    assert "no issues" in capsys.readouterr().out


def test_persistent_connections_are_an_error(monkeypatch):
    assert checks.persistent_connections(None) == []
    database = {"ENGINE": "django.db.backends.postgresql", "CONN_MAX_AGE": 60}
    monkeypatch.setattr(checks, "settings", types.SimpleNamespace(DATABASES={"default": database}))
    found = checks.persistent_connections(None)
    assert ids(found) == ["fanfare.E001"]
    assert "CONN_MAX_AGE=60" in found[0].msg


def test_a_data_folder_on_a_network_file_system_is_an_error(monkeypatch):
    assert checks.data_folder_is_local(None) == []
    monkeypatch.setattr(place, "file_system", lambda path: "nfs4")
    assert ids(checks.data_folder_is_local(None)) == ["fanfare.E002"]


@pytest.mark.parametrize(("limit", "found"), [(1024, ["fanfare.W001"]), (65536, []), (resource.RLIM_INFINITY, [])])
def test_a_low_limit_of_open_files_is_a_warning(monkeypatch, limit, found):
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (limit, resource.RLIM_INFINITY))
    assert ids(checks.open_files(None)) == found


def test_a_deployment_without_tls_is_a_warning(settings):
    settings.FANFARE_TLS = False
    assert ids(checks.encryption(None)) == ["fanfare.W002"]
    settings.FANFARE_TLS = True
    assert checks.encryption(None) == []


def test_a_deployment_that_only_this_machine_can_reach_is_a_warning(settings):
    settings.ALLOWED_HOSTS = ["localhost", "127.0.0.1"]
    assert ids(checks.hosts(None)) == ["fanfare.W003"]
    settings.ALLOWED_HOSTS = ["realtime.example.com"]
    assert checks.hosts(None) == []


def test_public_demo_is_a_warning(settings):
    settings.FANFARE_DEMO = True
    assert ids(checks.demo(None)) == ["fanfare.W004"]
    settings.FANFARE_DEMO = False
    assert checks.demo(None) == []


def test_the_checks_of_a_deployment_run_with_deploy_only(settings):
    settings.FANFARE_TLS = False
    assert "fanfare.W002" not in ids(django_checks.run_checks())
    assert "fanfare.W002" in ids(django_checks.run_checks(include_deployment_checks=True))
