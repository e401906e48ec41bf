from __future__ import annotations

import io
import os
import re
import socket
import subprocess
import sys

import pytest
from django.contrib.auth import authenticate, get_user_model
from django.core.management import CommandError, call_command

from fanfare.applications import models
from myproject.management.commands import develop, setup
from tests.harness import deployments


def run():
    out = io.StringIO()
    call_command("setup", stdout=out)
    return out.getvalue()


@pytest.fixture
def database(db, settings):
    settings.FANFARE = {"APPS": ""}


@pytest.mark.usefixtures("database")
def test_setup_creates_an_application_and_an_admin_and_prints_the_credentials():
    said = run()
    application = models.Application.objects.get()
    assert application.enabled
    assert application.client_events
    assert f"FANFARE_APP_ID={application.app_id}\n" in said
    assert f"FANFARE_APP_KEY={application.key}\n" in said
    assert f"FANFARE_APP_SECRET={application.secret}\n" in said
    password = re.search(r"password (\S+)", said)
    assert password
    user = authenticate(username="admin", password=password[1])
    assert user is not None
    assert user.is_superuser


@pytest.mark.usefixtures("database")
def test_setup_again_changes_nothing_and_shows_the_credentials_but_no_password():
    first = run()
    rows = list(models.Application.objects.values()), list(get_user_model().objects.values())
    second = run()
    assert (list(models.Application.objects.values()), list(get_user_model().objects.values())) == rows
    assert "password" in first
    assert "password" not in second
    assert models.Application.objects.get().secret in second


@pytest.mark.usefixtures("database")
def test_setup_changes_no_deployment_with_an_admin_and_applications():
    get_user_model().objects.create_superuser("root", password="x")
    models.Application.objects.create(name="Ours")
    said = run()
    assert models.Application.objects.count() == get_user_model().objects.count() == 1
    assert "Application Ours" in said


@pytest.mark.usefixtures("database")
def test_setup_takes_the_applications_that_the_environment_declares(settings):
    settings.FANFARE = {"APPS": "1001:declared-key:declared-secret:Declared"}
    assert "FANFARE_APP_KEY=declared-key" in run()
    assert models.Application.objects.count() == 1


@pytest.mark.usefixtures("database")
def test_setup_reports_that_every_application_is_disabled():
    models.Application.objects.create(name="Ours", enabled=False)
    assert "none is enabled" in run()


@pytest.mark.parametrize(
    ("host", "url"),
    [("127.0.0.1", "http://127.0.0.1:80/"), ("0.0.0.0", "http://127.0.0.1:80/"), ("::1", "http://[::1]:80/")],
)
def test_printed_address_is_one_that_a_browser_can_open(host, url):
    assert setup.url(host, 80) == url


def test_taken_port_is_refused_in_one_sentence_before_setup(settings, monkeypatch):
    monkeypatch.setattr(develop, "call_command", lambda *_, **__: pytest.fail("set up already"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host, port = listener.getsockname()
        settings.FANFARE = {"HOST": host, "PORT": port}
        with pytest.raises(CommandError, match=rf"^Port {port} of 127\.0\.0\.1 is in use: .*FANFARE_PORT"):
            call_command("develop")


def test_host_of_another_machine_is_refused_in_one_sentence():
    assert "A server cannot listen on 192.0.2.1" in (develop.listening_problem("192.0.2.1", 8000) or "")


@pytest.mark.usefixtures("database")
def test_develop_sets_up_and_is_replaced_by_uvicorn_with_debug(settings, monkeypatch):
    class Replaced(Exception):
        pass

    started = []

    def execv(path, arguments):
        started.append((arguments, develop.os.environ["FANFARE_DEBUG"]))
        raise Replaced

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    settings.FANFARE = {"PORT": port}
    monkeypatch.setattr(develop.os, "execv", execv)
    monkeypatch.setattr(develop.os, "chdir", lambda path: None)
    monkeypatch.setenv("FANFARE_DEBUG", "")
    monkeypatch.delenv("FANFARE_DEBUG")
    out = io.StringIO()
    with pytest.raises(Replaced):
        call_command("develop", stdout=out)
    assert started == [
        (
            [
                develop.sys.executable,
                "-m",
                "uvicorn",
                "myproject.asgi:application",
                "--reload",
                "--host",
                "127.0.0.1",
                "--port",
                str(port),
            ],
            "1",
        )
    ]
    assert models.Application.objects.get().secret in out.getvalue()


# -- other user models -------------------------------------------------------------------------------------------------

EMAIL_MANAGER = """
class Users(BaseUserManager):
    def create_superuser(self, email, password=None, **more):
        user = self.model(email=self.normalize_email(email), is_staff=True, is_superuser=True, **more)
        user.set_password(password)
        user.save(using=self._db)
        return user
"""
USER_MODELS = {
    "an email address in place of a name": (
        EMAIL_MANAGER
        + """
class User(AbstractUser):
    username = None
    email = models.EmailField(unique=True)
    USERNAME_FIELD, REQUIRED_FIELDS = "email", []
    objects = Users()
""",
        "user admin@example.com, password",
    ),
    "a required field that only people know": (
        EMAIL_MANAGER
        + """
class User(AbstractUser):
    username = None
    email = models.EmailField(unique=True)
    birthday = models.DateField()
    USERNAME_FIELD, REQUIRED_FIELDS = "email", ["birthday"]
    objects = Users()
""",
        "create one with `manage.py createsuperuser`",
    ),
    "a manager without create_superuser": (
        """
class User(AbstractBaseUser, PermissionsMixin):
    email = models.EmailField(unique=True)
    is_staff = True
    USERNAME_FIELD = "email"
    objects = models.Manager()
""",
        "create one with `manage.py createsuperuser`",
    ),
    "UUID keys": (
        """
class User(AbstractUser):
    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
""",
        "user admin, password",
    ),
}
HEAD = """
import uuid

from django.contrib.auth.models import AbstractBaseUser, AbstractUser, BaseUserManager, PermissionsMixin
from django.db import models
"""
SETTINGS = """
from myproject.settings import *

INSTALLED_APPS += ["accounts"]
AUTH_USER_MODEL = "accounts.User"
"""


@pytest.mark.parametrize(("model", "line"), USER_MODELS.values(), ids=USER_MODELS)
def test_setup_works_with_a_user_model_of_the_project(tmp_path, model, line):
    (tmp_path / "accounts" / "migrations").mkdir(parents=True)
    for name in ("accounts", "accounts/migrations"):
        (tmp_path / name / "__init__.py").write_text("")
    (tmp_path / "accounts" / "models.py").write_text(HEAD + model)
    (tmp_path / "other_settings.py").write_text(SETTINGS)
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(tmp_path),
        "DJANGO_SETTINGS_MODULE": "other_settings",
        "FANFARE_ENV_FILE": os.devnull,
        "FANFARE_DATA_DIR": str(tmp_path / "var"),
    }

    def manage(*arguments):
        found = subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=deployments.REPOSITORY,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert found.returncode == 0, found.stderr
        return found.stdout

    manage("makemigrations", "accounts", "--verbosity", "0")
    said = manage("setup")
    assert line in said
    assert "FANFARE_APP_SECRET=" in said
    again = manage("setup")
    assert "password" not in again
