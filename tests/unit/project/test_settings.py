from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from django.conf import settings

SHOW = """
import json
from myproject import settings
print(json.dumps({name: getattr(settings, name) for name in dir(settings) if name.isupper()}, default=str))
"""


def python(*arguments, **environment):
    return subprocess.run(
        [sys.executable, *arguments],
        env={"PATH": os.environ["PATH"], "FANFARE_ENV_FILE": os.devnull, **environment},
        cwd=settings.BASE_DIR,
        capture_output=True,
        text=True,
        check=False,
    )


def read(folder, **environment):
    found = python("-c", SHOW, FANFARE_DATA_DIR=str(folder), **environment)
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)


def test_defaults_are_safe(tmp_path):
    found = read(tmp_path / "var")
    assert found["DEBUG"] is False
    assert found["ALLOWED_HOSTS"] == ["localhost", ".localhost", "127.0.0.1", "[::1]"]
    assert len(found["SECRET_KEY"]) >= 50
    assert found["DATABASES"]["default"]["NAME"] == str(tmp_path / "var" / "db.sqlite3")
    assert "CHANNEL_LAYERS" not in found
    assert read(tmp_path / "var")["SECRET_KEY"] == found["SECRET_KEY"], "made once"
    assert read(tmp_path / "other")["SECRET_KEY"] != found["SECRET_KEY"], "each data directory is a separate deployment"


def test_tls_marks_the_cookies_and_sends_hsts(tmp_path):
    plain, secure = read(tmp_path), read(tmp_path, FANFARE_TLS="1")
    for name in ("SESSION_COOKIE_SECURE", "CSRF_COOKIE_SECURE"):
        assert (plain[name], secure[name]) == (False, True)
    assert (plain["SECURE_HSTS_SECONDS"], secure["SECURE_HSTS_SECONDS"]) == (0, 3600)


def test_project_limits_logins_and_sends_a_content_security_policy(tmp_path):
    found = read(tmp_path, FANFARE_TLS="1")["MIDDLEWARE"]
    assert {"fanfare.middleware.LoginThrottle", "fanfare.middleware.ContentSecurityPolicy"} <= set(found)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FANFARE_DEBUG", "maybe"),
        ("FANFARE_PORT", "http"),
        ("FANFARE_LOG_SECONDS", "0"),
        ("FANFARE_APPEND_TIMEOUT", "soon"),
        ("FANFARE_SYNC", "never"),
        ("FANFARE_TRUSTED_PROXIES", "nginx"),
        ("FANFARE_LOG_LEVEL", "loud"),
        ("DATABASE_URL", "mysql://x"),
    ],
)
def test_bad_value_stops_a_command_and_a_server_with_one_sentence(tmp_path, name, value):
    environment = {"FANFARE_DATA_DIR": str(tmp_path), name: value}
    for arguments in (["manage.py", "check"], ["manage.py", "setup"], ["-c", "import myproject.asgi"]):
        found = python(*arguments, **environment)
        assert found.returncode != 0
        assert found.stdout == ""
        assert len(found.stderr.strip().splitlines()) == 1, found.stderr
        assert name in found.stderr
        assert value.partition(":")[0] in found.stderr


def test_server_with_bad_settings_ends_with_code_3(tmp_path):
    found = python("-c", "import myproject.asgi", FANFARE_DATA_DIR=str(tmp_path), FANFARE_DEBUG="maybe")
    assert found.returncode == 3


def test_secret_key_may_come_from_a_file(tmp_path):
    (tmp_path / "key").write_text("k" * 60 + "\n")
    found = read(tmp_path / "var", FANFARE_SECRET_KEY_FILE=str(tmp_path / "key"))
    assert found["SECRET_KEY"] == "k" * 60
    assert not (tmp_path / "var" / "secret_key").exists()
