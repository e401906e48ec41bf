from __future__ import annotations

import os
import resource
import sys

import pytest
from django.core.management import call_command

from fanfare import checks
from fanfare.engine.local import paths
from fanfare.server import machine_limits


def ids(found):
    return [message.id for message in found]


@pytest.mark.django_db  # Django 6.1 asks the database for its features
def test_project_as_it_comes_has_no_issues(capsys):
    call_command("check")
    assert "no issues" in capsys.readouterr().out


def test_data_folder_on_a_network_file_system_is_an_error(monkeypatch):
    assert checks.data_folder_is_local(None) == []
    monkeypatch.setattr(paths, "file_system", lambda path: "nfs4")
    assert ids(checks.data_folder_is_local(None)) == ["fanfare.E002"]


@pytest.mark.parametrize("name", ["ENGINE", "ENGINE_NEXT"])
@pytest.mark.parametrize(
    "url", ["redis://localhost:99999/0", "redis://localhost:6379/abc", "postgres://localhost:abc/d"]
)
def test_url_of_an_engine_that_cannot_be_valid_is_an_error(settings, name, url):
    assert checks.engine_is_usable(None) == []
    settings.FANFARE = {name: url}
    [message] = checks.engine_is_usable(None)
    assert message.id == "fanfare.E005"
    assert message.msg.startswith(f"FANFARE_{name} is not a valid ")


@pytest.mark.parametrize(("limit", "found"), [(1024, ["fanfare.W001"]), (65536, []), (resource.RLIM_INFINITY, [])])
def test_low_limit_of_open_files_is_a_warning(monkeypatch, limit, found):
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (limit, resource.RLIM_INFINITY))
    monkeypatch.setattr(machine_limits, "queue", lambda: None)
    assert ids(checks.limits_of_the_machine(None)) == found


@pytest.mark.parametrize(
    ("folder", "file", "is_warned"), [(0o755, 0o644, True), (0o750, 0o644, False), (0o755, 0o640, False)]
)
def test_database_that_other_users_can_read_is_a_warning(tmp_path, monkeypatch, settings, folder, file, is_warned):
    monkeypatch.delenv("FANFARE_DATA_DIR")
    settings.FANFARE = {"DATA_DIR": str(tmp_path)}
    assert checks.data_folder_is_private(None) == []
    database = tmp_path / "db.sqlite3"
    database.touch()
    database.chmod(file)
    tmp_path.chmod(folder)
    assert ids(checks.data_folder_is_private(None)) == ["fanfare.W013"] * is_warned


@pytest.mark.parametrize(("length", "is_warned"), [("128\n", True), ("4096\n", False), ("", False)])
def test_short_queue_of_new_connections_is_a_warning(tmp_path, length, is_warned):
    file = tmp_path / "somaxconn"
    file.write_text(length)
    assert bool(machine_limits.queue(file)) == is_warned
    assert machine_limits.queue(tmp_path / "none") is None


@pytest.mark.parametrize(
    ("quota", "share"), [("50000 100000\n", 0.5), ("max 100000\n", None), ("99999900000 100000\n", None), ("", None)]
)
def test_cores_are_those_of_the_machine_or_what_the_container_may_use(tmp_path, quota, share):
    file = tmp_path / "cpu.max"
    file.write_text(quota)
    assert machine_limits.cores(file) == (share or machine_limits.cores(tmp_path / "none"))
    assert machine_limits.cores(tmp_path / "none") == len(os.sched_getaffinity(0))


def test_encryption_key_without_its_extra_is_a_warning(monkeypatch, settings):
    settings.FANFARE = {"ENCRYPTION_MASTER_KEY": bytes(32)}
    assert checks.encryption_extra(None) == []
    monkeypatch.setitem(sys.modules, "nacl", None)
    (found,) = checks.encryption_extra(None)
    assert found.id == "fanfare.W007"
    assert "django-fanfare[encryption]" in found.hint
    settings.FANFARE = {}
    assert checks.encryption_extra(None) == []


def test_misspelt_variable_is_a_warning(monkeypatch):
    assert checks.misspelt_variables(None) == []
    monkeypatch.setenv("FANFARE_OUTBOXX", "1")
    (found,) = checks.misspelt_variables(None)
    assert found.id == "fanfare.W005"
    assert "FANFARE_OUTBOXX" in found.msg
    assert found.hint == "Did you mean FANFARE_OUTBOX?"


def test_setting_outside_of_the_dict_is_a_warning(settings):
    assert checks.settings_outside_the_dict(None) == []
    settings.FANFARE_OUTBOX = True
    (found,) = checks.settings_outside_the_dict(None)
    assert found.id == "fanfare.W006"
    assert 'FANFARE = {"OUTBOX": …}' in found.hint


@pytest.mark.parametrize(
    ("engine", "wrong"), [("local", True), ("postgres://shop@db/shop", False), ("postgresql://shop@db/shop", False)]
)
def test_transactional_publish_needs_the_postgres_engine(settings, engine, wrong):
    settings.FANFARE = {"TRANSACTIONAL_PUBLISH": True, "ENGINE": engine}
    assert [found.id for found in checks.transactional_engine(None)] == ["fanfare.E004"] * wrong
