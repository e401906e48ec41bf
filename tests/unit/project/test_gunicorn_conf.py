from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

from tests.harness import deployments

FILE = deployments.REPOSITORY / "gunicorn.conf.py"
NAME = "FANFARE_GRACEFUL_TIMEOUT"


@pytest.fixture
def load(monkeypatch):
    """Read the file as gunicorn does, and put back what it changes in this process."""
    monkeypatch.setenv("TZ", os.environ.get("TZ", "UTC"))
    yield lambda: runpy.run_path(str(FILE))
    monkeypatch.undo()
    time.tzset()


def test_documented_command_needs_no_flag(load):
    found = load()
    assert found["preload_app"] is False
    assert found["control_socket_disable"] is True
    assert found["keepalive"] == 75


def test_master_imports_the_standard_library_and_gunicorn_only():
    code = (
        "import json, runpy, sys\nbefore = set(sys.modules)\nrunpy.run_path(sys.argv[1])\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(json.dumps(sorted(new - sys.stdlib_module_names)))"
    )
    found = subprocess.run([sys.executable, "-c", code, str(FILE)], capture_output=True, text=True, check=True)
    assert set(json.loads(found.stdout)) <= {"gunicorn"}


@pytest.mark.parametrize(
    ("environment", "env_file", "seconds"),
    [
        (None, None, 5),
        ("30", "FANFARE_GRACEFUL_TIMEOUT=9", 30),
        (None, "FANFARE_PORT=80\nFANFARE_GRACEFUL_TIMEOUT=40\n", 40),
        (None, "export FANFARE_GRACEFUL_TIMEOUT = '41'  # seconds\n", 41),
        (None, "FANFARE_GRACEFUL_TIMEOUT=41\nFANFARE_GRACEFUL_TIMEOUT=42\n", 42),
        (None, "#FANFARE_GRACEFUL_TIMEOUT=43\nXFANFARE_GRACEFUL_TIMEOUT=44\n", 5),
        ("soon", None, 5),  # the worker refuses it
        ("", "FANFARE_GRACEFUL_TIMEOUT=\n", 5),
    ],
)
def test_gunicorn_waits_longer_for_a_worker_than_the_worker_for_its_connections(
    load, monkeypatch, tmp_path: Path, environment, env_file, seconds
):
    monkeypatch.setenv("FANFARE_ENV_FILE", str(tmp_path / "env"))
    if environment is not None:
        monkeypatch.setenv(NAME, environment)
    if env_file is not None:
        (tmp_path / "env").write_text(env_file)
    assert load()["graceful_timeout"] == seconds + 10 + 5


@pytest.fixture
def server():
    return types.SimpleNamespace(log=types.SimpleNamespace(error=lambda *_: None))


@pytest.fixture
def worker():
    return types.SimpleNamespace(notify=lambda: None)


def test_worker_drops_modules_that_an_older_master_imported(load, monkeypatch, server, worker):
    found = load()
    for name in ("fanfare.environment", "myproject.environment", "demoscene"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    kept = dict(sys.modules)
    try:
        found["pre_fork"](server, worker)
        found["post_fork"](server, worker)
        assert "fanfare.environment" not in sys.modules
        assert "myproject.environment" not in sys.modules
        assert "demoscene" in sys.modules
    finally:
        sys.modules.update(kept)


@pytest.mark.parametrize(
    ("code", "served", "ends_master"),
    [(3, False, True), (4, False, True), (3, True, False), (4, True, False), (0, True, True), (1, True, True)],
)
def test_failed_start_of_a_worker_ends_the_master_only_before_any_worker_has_served(
    load, monkeypatch, server, worker, code, served, ends_master
):
    found = load()
    pauses, exits = [], []
    monkeypatch.setattr(time, "sleep", pauses.append)
    monkeypatch.setattr(os, "_exit", exits.append)
    kept = dict(sys.modules)
    found["pre_fork"](server, worker)
    found["post_fork"](server, worker)
    sys.modules.update(kept)
    if served:
        worker.notify()  # uvicorn's worker does once it serves
    found["pre_fork"](server, worker)  # of the next worker; what was served stays
    with pytest.raises(SystemExit):
        try:
            raise SystemExit(code)
        finally:
            found["worker_exit"](server, worker)
    assert exits == ([] if ends_master else [1])
    assert bool(pauses) is not ends_master
