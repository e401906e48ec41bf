"""gunicorn's master survives what a deploy does to its workers: new code, wrong settings, an older release."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.harness import calls, deployments, servers, waiting

Start = Callable[..., servers.Server]

WITHIN_S = 60.0  # old workers serve until four new ones do, which takes 6 s on two idle cores

# What an older release had: the master imports modules of the project, which its forked workers then keep.
OLDER_CONF = """
from django.core.exceptions import ImproperlyConfigured
from fanfare import environment

environment.load()
"""
OLDER_ENVIRONMENT = """
def load():
    pass
"""


def replaced(server: servers.Server, old: list[int]) -> Callable[[], bool]:
    return lambda: len(set(server.workers()) - set(old)) == 4 and not set(server.workers()) & set(old)


def test_worker_that_cannot_start_later_is_started_again_and_the_others_serve(
    start: Start, fleet: servers.Fleet, tmp_path: Path
) -> None:
    settings = tmp_path / "env"
    settings.write_text("")
    server = start("gunicorn", fleet.deployment(FANFARE_ENV_FILE=str(settings)))
    settings.write_text("FANFARE_SYNC=never\n")
    before, killed = server.log_size(), server.workers()[0]
    psutil.Process(killed).kill()
    waiting.until(lambda: server.log_text(before).count("trying again in") >= 2, WITHIN_S, "two attempts")
    assert "FANFARE_SYNC is 'never'; it must be one of normal, full." in server.log_text(before)
    assert server.process.poll() is None
    calls.publish(server, "news", "still", "{}")
    settings.write_text("")
    waiting.until(lambda: len(server.workers()) == 4 and server.is_ready(), WITHIN_S, "four workers")
    assert killed not in server.workers()


def test_reload_with_wrong_settings_ends_no_master(start: Start, fleet: servers.Fleet, tmp_path: Path) -> None:
    settings = tmp_path / "env"
    settings.write_text("")
    server = start("gunicorn", fleet.deployment(FANFARE_ENV_FILE=str(settings)))
    old = server.workers()
    settings.write_text("FANFARE_SYNC=never\n")
    before = server.log_size()
    server.send_signal(signal.SIGHUP)
    waiting.until(lambda: server.log_text(before).count("trying again in") >= 4, WITHIN_S, "each worker has tried")
    settings.write_text("")
    waiting.until(lambda: replaced(server, old)() and server.is_ready(), WITHIN_S, "four new workers")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What a deployment has on disk, in a folder that a test may change."""
    root = tmp_path / "clone"
    root.mkdir()
    for part in ("apps", "myproject"):
        shutil.copytree(deployments.REPOSITORY / part, root / part, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("manage.py", "gunicorn.conf.py"):
        shutil.copy(deployments.REPOSITORY / name, root)
    return root


def test_reload_after_an_upgrade_drops_the_modules_that_an_older_master_imported(
    start: Start, fleet: servers.Fleet, clone: Path, tmp_path: Path
) -> None:
    """The older module stays in the master; a worker that kept it would miss names that the new code needs."""
    older = tmp_path / "older"
    (older / "fanfare").mkdir(parents=True)
    (older / "fanfare" / "__init__.py").write_text("")
    (older / "fanfare" / "environment.py").write_text(OLDER_ENVIRONMENT)
    current = (clone / "gunicorn.conf.py").read_text()
    # The master reads the older configuration with the older package; its workers already start as today's do.
    (clone / "gunicorn.conf.py").write_text(
        f"import sys\nsys.path.insert(0, {str(older)!r})\n{OLDER_CONF}\nsys.path.remove({str(older)!r})\n"
        "def post_fork(server, worker):\n"
        "    for name in [name for name in sys.modules if name.partition('.')[0] == 'fanfare']:\n"
        "        del sys.modules[name]\n"
    )
    server = start("gunicorn", fleet.deployment(PYTHONPATH=str(clone / "apps")), root=clone)
    old = server.workers()
    (clone / "gunicorn.conf.py").write_text(current)
    server.send_signal(signal.SIGHUP)
    waiting.until(lambda: replaced(server, old)() and server.is_ready(), WITHIN_S, "four new workers")
    calls.publish(server, "news", "after", "{}")
