"""A project whose router writes webhooks to another database, and reads from a replica that is not there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.core.management import call_command
from django.utils import timezone
from pytest_django import Settings

from fanfare.applications import registry
from fanfare.applications.models import Application, WebhookEndpoint
from fanfare.webhooks import deliveries, errors, events, http_client, models, result_writer
from tests.unit import second_database

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "second"])

ACCEPTED = http_client.Outcome(200, "", "", 1)


@pytest.fixture(scope="module", autouse=True)
def second(
    django_db_setup: None, django_db_blocker: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Any]]:
    with second_database.added(tmp_path_factory.mktemp("second"), django_db_blocker) as settings:
        yield settings


class Router:
    def db_for_read(self, model: object, **hints: object) -> str:
        return "replica"

    def db_for_write(self, model: object, **hints: object) -> str:
        return "second"


class Writer(Router):
    db_for_read = Router.db_for_write


@pytest.fixture
def webhook(settings: Settings) -> registry.Webhook:
    settings.DATABASE_ROUTERS = [Router()]
    application = Application(name="Shop", app_id="42", key="shop-key", secret="shop-secret")
    application.save(using="second")
    row = WebhookEndpoint(application=application, url="https://example.com/hook")
    row.save(using="second")
    return registry.Webhook(id=row.pk, url=row.url)


def store(webhook: registry.Webhook, *found: events.Event, after: int = 0) -> None:
    deliveries.store(
        found,
        partition=0,
        log_id="one",
        after=after,
        upto=found[-1].entry,
        route=lambda app, name, channel: [webhook],
        debounce_seconds=0,
    )


def event(entry: int, name: str) -> events.Event:
    return events.Event(entry, "42", name, "news", "{}", "key" if name in events.REMOVALS else "")


def test_all_tables_are_read_and_written_where_the_router_writes(webhook: registry.Webhook) -> None:
    deliveries.start(0, "one", 0)
    store(webhook, event(1, "cache_miss"), event(2, events.VACATED))
    assert deliveries.release(lambda app, name, channel: [webhook]) == ({webhook.id}, None)
    assert deliveries.waiting_endpoints() == [webhook.id]
    assert deliveries.pending_counts() == {webhook.id: 2}
    rows = deliveries.pending(webhook.id, (), 10)
    deliveries.delivered([row.id for row in rows], ACCEPTED)
    deliveries.save_health(webhook.id, 0, None, ACCEPTED)
    models.Delivery.objects.using("second").update(finished_at=timezone.now())
    assert deliveries.trim(keep_seconds=100, keep_rows=1) == 2


def test_events_and_position_are_one_transaction_of_that_database(
    webhook: registry.Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    deliveries.start(0, "one", 0)

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as failing:
        failing.setattr(deliveries, "_deliver", fail)
        with pytest.raises(ZeroDivisionError):
            store(webhook, event(1, "cache_miss"))
    assert deliveries.position(0).entry == 0
    store(webhook, event(1, "cache_miss"))
    with pytest.raises(errors.Overtaken):
        store(webhook, event(1, "cache_miss"))


def test_results_are_one_transaction_of_that_database(webhook: registry.Webhook) -> None:
    deliveries.start(0, "one", 0)
    store(webhook, event(1, "cache_miss"))
    [row] = deliveries.pending(webhook.id, (), 10)

    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        result_writer._all([lambda: deliveries.delivered([row.id], ACCEPTED), fail])
    assert deliveries.pending_counts() == {webhook.id: 1}


def test_application_with_its_webhooks_is_one_transaction_of_that_database(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.DATABASE_ROUTERS = [Writer()]

    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as failing:
        failing.setattr(WebhookEndpoint, "save", fail)
        with pytest.raises(ZeroDivisionError):
            call_command("createapplication", "Shop", "--webhook", "https://example.com/hook")
    assert not Application.objects.using("second").exists()


def test_positions_after_a_move_of_the_log_are_stored_in_that_database(webhook: registry.Webhook) -> None:
    deliveries.continue_from([(0, "new", 7)])
    assert not models.LogPosition.objects.using("second").exists()
    deliveries.start(0, "one", 3)
    deliveries.start(1, "one", 4)
    deliveries.continue_from([(0, "new", 7)])
    rows = models.LogPosition.objects.using("second").values_list("partition", "log_id", "entry")
    assert list(rows) == [(0, "new", 7)]
