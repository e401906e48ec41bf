"""The public names of the package, and where they can be imported."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import fanfare

FILES = {
    "project/__init__.py": "from fanfare import *\nfrom fanfare import {names}\n",
    "project/settings.py": """
from fanfare import {names}

SECRET_KEY = "for this test"
INSTALLED_APPS = ["shop", "fanfare", "django.contrib.auth", "django.contrib.contenttypes"]
DATABASES = {{"default": {{"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}}}
""",
    "shop/__init__.py": "from fanfare import {names}\n",
    "shop/apps.py": "from django.apps import AppConfig\nfrom fanfare import {names}\n",
    "shop/models.py": """
from django.db import models
from fanfare import {names}


@broadcast(channels=["orders"], fields=["id"])
class Order(models.Model):
    def announce(self):
        publish("orders", "created", self.pk)
""",
    "shop/channels.py": '@__import__("fanfare").channel("private-orders")\ndef rule(user):\n    return True\n',
}
CODE = """
import project, project.settings, django
django.setup()
from fanfare.integration import rules
assert rules.registered.find("private-orders")
print("imported")
"""


def test_importing_the_package_imports_neither_django_nor_a_module_of_it() -> None:
    code = "import sys, fanfare; print(sorted(name for name in sys.modules if name.startswith(('django', 'fanfare.'))))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout == "[]\n"


def test_every_name_can_be_imported_in_settings_packages_apps_and_models(tmp_path: Path) -> None:
    """`shop` comes before `fanfare` in INSTALLED_APPS, so its models are imported first."""
    for name, text in FILES.items():
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text.format(names=", ".join(fanfare.__all__)), encoding="utf-8")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("FANFARE_")}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", CODE],
        cwd=tmp_path,
        env={**inherited, "DJANGO_SETTINGS_MODULE": "project.settings", "FANFARE_DATA_DIR": str(tmp_path / "var")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "imported\n", done.stderr
    assert not (tmp_path / "var").exists()  # what is imported writes nothing


@pytest.mark.parametrize("name", fanfare.__all__)
def test_name_of_the_public_api_exists_and_is_explained(name: str) -> None:
    value = getattr(fanfare, name)
    assert (value.__doc__ or "").strip(), name
    assert name in dir(fanfare)
    module = fanfare._MODULES.get(name) or fanfare._HOMES.get(name, "fanfare.errors")
    home = importlib.import_module(module)
    assert value is home if name in fanfare._MODULES else value is getattr(home, name)


def test_unknown_name_raises_attribute_error() -> None:
    with pytest.raises(AttributeError, match="unpublish"):
        _ = fanfare.unpublish


def test_one_base_class_catches_every_error() -> None:
    classes = [getattr(fanfare, name) for name in fanfare.__all__ if isinstance(getattr(fanfare, name), type)]
    found = [one for one in classes if issubclass(one, Exception)]
    assert fanfare.EngineUnavailable in found
    assert [one for one in found if not issubclass(one, fanfare.FanfareError)] == []
