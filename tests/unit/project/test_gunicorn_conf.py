from __future__ import annotations

import os
import runpy
import time

import pytest
from django.conf import settings
from uvicorn.workers import UvicornWorker

from fanfare import conf


@pytest.fixture
def load(monkeypatch):
    """Read the file as gunicorn does, and put back what it changes in this process."""
    monkeypatch.setattr(UvicornWorker, "CONFIG_KWARGS", dict(UvicornWorker.CONFIG_KWARGS))
    monkeypatch.setenv("TZ", os.environ.get("TZ", "UTC"))
    yield lambda: runpy.run_path(str(settings.BASE_DIR / "gunicorn.conf.py"))
    monkeypatch.undo()
    time.tzset()


def test_the_documented_command_needs_no_flag(load):
    found = load()
    options = UvicornWorker.CONFIG_KWARGS
    assert options["loop"] == "auto", "what uvicorn chose stays"
    assert options["ws_per_message_deflate"] is False
    assert options["ws_max_size"] == conf.settings.MAX_FRAME_BYTES
    assert options["proxy_headers"] is False
    assert found["preload_app"] is False
    assert found["control_socket_disable"] is True


def test_gunicorn_waits_longer_for_a_worker_than_the_worker_for_its_connections(load, monkeypatch):
    monkeypatch.setenv("FANFARE_GRACEFUL_TIMEOUT", "30")
    assert load()["graceful_timeout"] > UvicornWorker.CONFIG_KWARGS["timeout_graceful_shutdown"] == 30


def test_a_bad_value_stops_gunicorn_with_one_sentence(load, monkeypatch):
    monkeypatch.setenv("FANFARE_GRACEFUL_TIMEOUT", "soon")
    with pytest.raises(SystemExit, match=r"^FANFARE_GRACEFUL_TIMEOUT is 'soon'; it must be"):
        load()
