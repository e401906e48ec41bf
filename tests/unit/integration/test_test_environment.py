"""publish() in tests that do not mention it: nothing leaves the process, and no application is needed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core import mail
from django.db import transaction
from django.template import RequestContext, Template
from django.test import Client, RequestFactory

from fanfare import NoApplication, apublish, channel, errors, history, presence, publish, sse_token
from fanfare.applications import models
from fanfare.engine import current
from fanfare.engine.local import engine as local_engine
from fanfare.integration import rules
from tests.unit.engine import workers


class Unused(local_engine.LocalEngine):
    def append_blocking(self, *arguments: Any, **options: Any) -> Any:
        raise AssertionError("a test wrote into the log of the deployment")

    queries = append_blocking


@pytest.fixture(autouse=True)
def log(tmp_path: Path) -> Iterator[None]:
    """In place of the fixture that replaces the engine: here the project's own one is configured."""
    before = current._make
    current.use(lambda: Unused(tmp_path / "engine"))
    yield
    assert before is not None
    current.use(before)
    assert not (tmp_path / "engine").exists()


def test_events_are_dropped_without_a_database_and_an_application() -> None:
    publish("orders", "created", {"id": 1}, on_commit=False)
    asyncio.run(apublish("orders", "created", {"id": 1}, on_commit=False, app="7"))
    presence.disconnect_user(7, on_commit=False)


@pytest.mark.django_db(transaction=True)
def test_events_of_a_committed_transaction_are_dropped() -> None:
    with transaction.atomic():
        publish("orders", "created", {"id": 1})
        publish("orders", "created", {"id": 1}, app=models.Application(name="shop", app_id="7"))


@pytest.mark.django_db(transaction=True)
def test_changed_applications_are_not_announced(caplog: pytest.LogCaptureFixture) -> None:
    """As in a TransactionTestCase of a project, whose commits are real."""
    application = models.Application.objects.create(name="shop")
    application.name = "other"
    application.save()
    models.Application.objects.all().delete()
    assert caplog.records == []


@pytest.mark.parametrize(("channel", "data"), [("a b", 1), ("orders", float("nan")), ("orders", "x" * 200_000)])
def test_wrong_arguments_are_raised(channel: str, data: Any) -> None:
    with pytest.raises(errors.PublishError):
        publish(channel, "created", data, on_commit=False)


def test_queries_find_an_empty_deployment() -> None:
    assert not presence.is_online(7)
    assert presence.members("presence-a") == []
    assert presence.subscriber_count("orders") == 0
    assert history.events("orders") == []
    assert sse_token("private-a").count(".") == 2


@pytest.mark.django_db
def test_auth_endpoint_and_client_tag_work_without_an_application(registered: rules.RuleSet) -> None:
    @channel("private-a")
    def rule(user: Any) -> bool:
        return bool(user.is_authenticated)

    client = Client()
    client.force_login(User.objects.create_user("ann"))
    answer = client.post("/pusher/auth", {"socket_id": "1.2", "channel_name": "private-a"})
    assert json.loads(answer.content)["auth"].startswith("test:")
    page = Template("{% load fanfare %}{% fanfare_client %}").render(RequestContext(RequestFactory().get("/"), {}))
    assert '"key": "test"' in page


@pytest.mark.django_db
def test_application_of_the_tests_database_is_used_for_pages() -> None:
    models.Application.objects.create(name="shop", app_id="7", key="key-7", secret="secret-7")
    page = Template("{% load fanfare %}{% fanfare_client %}").render(RequestContext(RequestFactory().get("/"), {}))
    assert '"key": "key-7"' in page


@pytest.mark.django_db
def test_outside_of_the_test_environment_an_application_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(mail, "outbox")
    with pytest.raises(NoApplication):
        publish("orders", "created", 1, on_commit=False)


@pytest.mark.django_db(transaction=True)
async def test_worker_in_the_process_of_the_test_gets_the_events(tmp_path: Path) -> None:
    engine = local_engine.LocalEngine(tmp_path / "worker")
    current.use(lambda: engine)
    application = await models.Application.objects.acreate(name="shop", app_id="7")
    worker = await workers.Worker(current.current()).open()
    try:
        await apublish("orders", "created", 1, app=application, on_commit=False)
        await worker.until(lambda: b"created" in worker.entries[-1].body, "the event")
    finally:
        await engine.close()
