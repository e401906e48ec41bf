from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings

from fanfare import conf
from fanfare.setting_types import Refused


@pytest.fixture(autouse=True)
def _fresh():
    """A test changes the environment, which `conf` reads once."""
    conf.settings.reload()
    yield
    conf.settings.reload()


def test_unset_setting_has_its_default():
    assert conf.settings.BUFFER_BYTES == 1_048_576
    assert conf.settings.OUTBOX is False
    assert conf.settings.TRUSTED_PROXIES == []


def test_dict_wins_over_the_default_and_the_environment_over_the_dict(monkeypatch, tmp_path):
    with override_settings(FANFARE={"BUFFER_BYTES": 70_000}):
        assert conf.settings.BUFFER_BYTES == 70_000
        monkeypatch.setenv("FANFARE_BUFFER_BYTES", "80000")
        assert conf.settings.BUFFER_BYTES == 70_000, "a setting is read once"
        conf.settings.reload()
        assert conf.settings.BUFFER_BYTES == 80_000
        monkeypatch.delenv("FANFARE_BUFFER_BYTES")
        (tmp_path / "bytes").write_text("90000\n")
        monkeypatch.setenv("FANFARE_BUFFER_BYTES_FILE", str(tmp_path / "bytes"))
        conf.settings.reload()
        assert conf.settings.BUFFER_BYTES == 90_000


def test_override_settings_ends_with_its_block():
    with override_settings(FANFARE={"OUTBOX": True}):
        assert conf.settings.OUTBOX is True
        with override_settings(FANFARE={"SYNC": "full"}):
            assert (conf.settings.OUTBOX, conf.settings.SYNC) == (False, "full"), "the whole dict is replaced"
    assert (conf.settings.OUTBOX, conf.settings.SYNC) == (False, "normal")


@pytest.mark.parametrize(
    ("declared", "sentence"),
    [
        (
            {"BUFFER_BYTES": "many"},
            "FANFARE[\"BUFFER_BYTES\"] is 'many'; it must be a whole number from 65536 to 268435456.",
        ),
        ({"OUTBOX": "no"}, "FANFARE[\"OUTBOX\"] is 'no'; it must be True or False."),
        ({"BUFER_BYTES": 1}, "FANFARE['BUFER_BYTES'] is not a setting of Fanfare. Did you mean BUFFER_BYTES?"),
        ({"FANFARE_OUTBOX": True}, "FANFARE['FANFARE_OUTBOX'] is not a setting of Fanfare. Did you mean OUTBOX?"),
        ({"buffer_bytes": 1}, "FANFARE['buffer_bytes'] is not a setting of Fanfare. Did you mean BUFFER_BYTES?"),
        ({"DEBUG_TOOLBAR": 1}, "FANFARE['DEBUG_TOOLBAR'] is not a setting of Fanfare."),
        ({1: 1}, "FANFARE[1] is not a setting of Fanfare."),
        (["OUTBOX"], "FANFARE in the settings is ['OUTBOX']; it must be a dict such as {\"OUTBOX\": True}."),
    ],
)
def test_wrong_dict_is_refused_with_key_value_and_remedy(declared, sentence):
    with override_settings(FANFARE=declared), pytest.raises(ImproperlyConfigured) as caught:
        conf.settings.validate()
    assert str(caught.value) == sentence


def test_wrong_variable_is_refused_with_name_value_and_what_is_allowed(monkeypatch):
    monkeypatch.setenv("FANFARE_SYNC", "never")
    with pytest.raises(ImproperlyConfigured, match=r"^FANFARE_SYNC is 'never'; it must be one of normal, full\.$"):
        conf.settings.validate()


@pytest.mark.parametrize("where", ["environment", "dict"])
def test_wrong_secret_is_refused_without_showing_it(monkeypatch, where):
    declared = {}
    if where == "environment":
        monkeypatch.setenv("FANFARE_ENCRYPTION_MASTER_KEY", "hush")
    else:
        declared = {"ENCRYPTION_MASTER_KEY": "hush"}
    with override_settings(FANFARE=declared), pytest.raises(ImproperlyConfigured, match="32 bytes") as caught:
        conf.settings.validate()
    assert "hush" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_every_setting_that_holds_a_secret_says_so():
    secrets = {setting.name for setting in conf.settings if setting.type.secret}
    assert secrets == {
        "APPS",
        "ENCRYPTION_MASTER_KEY",
        "ENGINE",
        "ENGINE_NEXT",
        "METRICS_TOKEN",
        "REMOTE_SECRET",
        "SECRET_ENCRYPTION_KEYS",
    }


def test_remote_deployment_needs_credentials():
    with (
        override_settings(FANFARE={"REMOTE_URL": "https://realtime.example.com", "REMOTE_APP_ID": "1"}),
        pytest.raises(
            ImproperlyConfigured,
            match="FANFARE_REMOTE_KEY, FANFARE_REMOTE_SECRET must be set together with FANFARE_REMOTE_URL, ",
        ),
    ):
        conf.settings.validate()


def test_deliveries_are_retried_for_five_minutes_at_least():
    with pytest.raises(Refused, match="from 300 to"):
        conf.Settings.WEBHOOKS_RETRY_SECONDS.type.from_text("299")


def test_settings_cannot_be_assigned():
    with pytest.raises(AttributeError, match=r"override_settings\(FANFARE=\{'OUTBOX': …\}\)"):
        conf.settings.OUTBOX = True  # type: ignore[misc]


def test_every_setting_has_an_explanation_in_sentences():
    for setting in conf.settings:
        assert setting.help.endswith("."), setting.name
        assert "  " not in setting.help, setting.name
        assert setting.type.allowed(), setting.name
        if setting.default != type(setting.default)():
            assert setting.type.from_text(setting.type.to_text(setting.default)) == setting.default, setting.name


# -- the data folder ---------------------------------------------------------------------------------------------------


@pytest.fixture
def without_data_dir(monkeypatch):
    monkeypatch.delenv("FANFARE_DATA_DIR")


@pytest.mark.usefixtures("without_data_dir")
def test_data_folder_is_var_below_base_dir(settings, tmp_path):
    settings.BASE_DIR = tmp_path
    assert tmp_path / "var" == conf.settings.DATA_DIR
    settings.BASE_DIR = str(tmp_path / "other")
    assert tmp_path / "other" / "var" == conf.settings.DATA_DIR
    settings.FANFARE = {"DATA_DIR": "data"}
    assert tmp_path / "other" / "data" == conf.settings.DATA_DIR
    settings.FANFARE = {"DATA_DIR": "/srv/data"}
    assert Path("/srv/data") == conf.settings.DATA_DIR


@pytest.mark.usefixtures("without_data_dir")
@pytest.mark.parametrize(
    ("module", "file", "base"),
    [
        ("shop.settings", "shop/__init__.py", "."),
        ("shop.settings.production", "shop/__init__.py", "."),
        ("shopsettings", "shopsettings.py", "."),
        ("missing", None, "cwd"),
    ],
)
def test_without_base_dir_the_data_folder_is_beside_the_settings_package(
    settings, monkeypatch, tmp_path, module, file, base
):
    del settings.BASE_DIR
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", module)
    monkeypatch.chdir(tmp_path)
    if file is not None:
        made = types.ModuleType(module.partition(".")[0])
        made.__file__ = str(tmp_path / "project" / file)
        monkeypatch.setitem(sys.modules, made.__name__, made)
    conf.settings.reload()
    assert (tmp_path if base == "cwd" else tmp_path / "project") / "var" == conf.settings.DATA_DIR


# -- variables that are no settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("FANFARE_BUFER_BYTES", "Did you mean FANFARE_BUFFER_BYTES?"),
        ("FANFARE_APP", "Did you mean FANFARE_APPS?"),
        ("FANFARE_APPS_FIL", "Did you mean FANFARE_APPS_FILE?"),
        ("FANFARE_DEBUGG", "Did you mean FANFARE_DEBUG?"),
        ("FANFARE_SOMETHING_ELSE_ENTIRELY", ""),
    ],
)
def test_misspelt_variable_is_found_with_the_nearest_name(name, suggestion):
    assert list(conf.unknown_variables(["PATH", name])) == [(name, suggestion)]


@pytest.mark.parametrize(
    "name",
    [
        "FANFARE_APPS",
        "FANFARE_APPS_FILE",
        "FANFARE_DEBUG",  # read by the project's own settings
        "FANFARE_SECRET_KEY_FILE",
        "FANFARE_ENV_FILE",
        "FANFARE_APP_KEY",  # of a client
        "FANFARE_SERVICE_HOST",  # set by Kubernetes for a service called `fanfare`
        "FANFARE_PORT_8000_TCP_ADDR",
        "MY_FANFARE_THING",
    ],
)
def test_variable_of_another_reader_is_not_called_misspelt(name):
    assert list(conf.unknown_variables([name])) == []
