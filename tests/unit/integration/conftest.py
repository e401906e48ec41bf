from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from asgiref.sync import async_to_sync
from django.db.models import signals

from fanfare.applications import models
from fanfare.engine import current
from fanfare.engine.local import engine as local_engine
from fanfare.integration import appending, broadcasts, rule_cache, rules, target
from tests.unit.engine import workers
from tests.unit.integration import recording


@pytest.fixture(autouse=True)
def log() -> Iterator[recording.Recording]:
    """What is published goes here."""
    log = recording.Recording()
    with current.replaced(log):  # type: ignore[arg-type]
        yield log


@pytest.fixture
def here(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, log: recording.Recording
) -> Iterator[local_engine.LocalEngine]:
    """The engine of this process, which is no worker, instead of `log`."""
    here = local_engine.LocalEngine(tmp_path / "engine")
    monkeypatch.setattr(current, "current", lambda: here)
    yield here
    async_to_sync(here.close)()


@pytest.fixture
async def worker(here: local_engine.LocalEngine, tmp_path: Path) -> AsyncIterator[workers.Worker]:
    """A worker of the deployment of `here`."""
    worker = await workers.Worker(local_engine.LocalEngine(tmp_path / "engine")).open()
    yield worker
    await worker.engine.close()


@pytest.fixture(autouse=True)
def unsampled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The log gets the test's events alone, without the records of their publisher."""
    monkeypatch.setattr(appending._sampler, "wants", lambda: False)


@pytest.fixture(autouse=True)
def nothing_remembered() -> Iterator[None]:
    """Each test has applications and rules of its own."""
    target.forget()
    rule_cache.cache.clear()
    yield
    target.forget()


@pytest.fixture
def application(db: None) -> models.Application:
    """The only, and so the default one."""
    return models.Application.objects.create(name="default", app_id="7", key="key-7", secret="secret-7")


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> rules.RuleSet:
    """An empty set of rules in place of the project's."""
    registered = rules.RuleSet()
    monkeypatch.setattr(rules, "registered", registered)
    return registered


@pytest.fixture
def broadcast(monkeypatch: pytest.MonkeyPatch) -> Iterator[broadcasts.Broadcast]:
    """A registration of this test alone."""
    for signal in (signals.post_save, signals.post_delete):
        monkeypatch.setattr(signal, "receivers", list(signal.receivers))
        signal.sender_receivers_cache.clear()
    yield broadcasts.Broadcast()
    for signal in (signals.post_save, signals.post_delete):
        signal.sender_receivers_cache.clear()
