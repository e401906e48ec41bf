"""The tables of webhooks."""

from __future__ import annotations

import datetime as dt

import pytest
from django.utils import timezone
from pytest_django import Settings

from fanfare.applications import registry
from fanfare.applications.models import WebhookEndpoint
from fanfare.webhooks import deliveries, errors, events, http_client, models

pytestmark = pytest.mark.django_db(transaction=True)

ACCEPTED = http_client.Outcome(200, "", "", 12)
REFUSED = http_client.Outcome(500, "HTTP 500", "no", 12)


def event(entry: int, name: str, channel: str = "news", key: str = "") -> events.Event:
    return events.Event(entry, "42", name, channel, f'{{"name":"{name}"}}', key)


def everything(endpoint: WebhookEndpoint) -> deliveries.Route:
    return lambda app, name, channel: [registry.Webhook(id=endpoint.pk, url=endpoint.url)]


def store(
    endpoint: WebhookEndpoint, *found: events.Event, after: int = 0, log: str = "one", debounce: float = 3.0
) -> tuple[set[int], int]:
    return deliveries.store(
        found,
        partition=0,
        log_id=log,
        after=after,
        upto=found[-1].entry,
        route=everything(endpoint),
        debounce_seconds=debounce,
    )


@pytest.fixture(autouse=True)
def started() -> None:
    deliveries.start(0, "one", 0)


def names() -> list[str]:
    return list(models.Delivery.objects.order_by("id").values_list("event", flat=True))


def test_deliveries_and_position_are_one_transaction(endpoint: WebhookEndpoint) -> None:
    assert store(endpoint, event(3, "channel_occupied"), event(5, "cache_miss")) == ({endpoint.pk}, 0)
    assert names() == ["channel_occupied", "cache_miss"]
    assert deliveries.position(0).entry == 5


def test_same_entries_are_not_stored_twice(endpoint: WebhookEndpoint) -> None:
    store(endpoint, event(3, "channel_occupied"))
    with pytest.raises(errors.Overtaken):
        store(endpoint, event(3, "channel_occupied"))
    assert names() == ["channel_occupied"]


def test_each_partition_has_its_own_position(endpoint: WebhookEndpoint) -> None:
    deliveries.start(1, "one", 7)
    store(endpoint, event(3, "channel_occupied"))
    assert [deliveries.position(partition).entry for partition in (0, 1, 2)] == [3, 7, 0]


def test_position_of_another_log_is_refused(endpoint: WebhookEndpoint) -> None:
    with pytest.raises(errors.Overtaken):
        store(endpoint, event(3, "channel_occupied"), log="two")


def test_event_that_cancels_a_removal_is_not_sent_either(endpoint: WebhookEndpoint) -> None:
    assert store(endpoint, event(1, events.VACATED, key="a"))[0] == set()
    assert store(endpoint, event(2, events.OCCUPIED, key="a"), after=1) == (set(), 1)
    assert names() == []
    assert not models.PendingRemoval.objects.exists()


def test_removal_and_its_cancellation_in_one_batch_cancel_each_other(endpoint: WebhookEndpoint) -> None:
    assert store(endpoint, event(1, events.VACATED, key="a"), event(2, events.OCCUPIED, key="a"))[1] == 1
    assert names() == []


def test_removal_is_not_cancelled_by_another_member(endpoint: WebhookEndpoint) -> None:
    store(endpoint, event(1, events.MEMBER_REMOVED, key="ann"), event(2, events.MEMBER_ADDED, key="ben"))
    assert names() == ["member_added"]
    assert models.PendingRemoval.objects.count() == 1


def test_second_removal_starts_its_wait_anew(endpoint: WebhookEndpoint) -> None:
    store(endpoint, event(1, events.VACATED, key="a"))
    first = models.PendingRemoval.objects.get().due_at
    store(endpoint, event(2, events.OCCUPIED, key="a"), event(3, events.VACATED, key="a"), after=1)
    assert models.PendingRemoval.objects.get().due_at > first


def test_removals_are_delivered_when_they_are_due_and_not_before(endpoint: WebhookEndpoint) -> None:
    store(endpoint, event(1, events.MEMBER_REMOVED, key="ann"), event(2, events.VACATED, key="a"), debounce=60)
    endpoints, wait = deliveries.release(everything(endpoint))
    assert endpoints == set()
    assert wait is not None and 50 < wait <= 60
    models.PendingRemoval.objects.update(due_at=timezone.now())
    assert deliveries.release(everything(endpoint)) == ({endpoint.pk}, None)
    assert names() == ["member_removed", "channel_vacated"]


def test_endpoint_that_was_deleted_meanwhile_gets_no_delivery(endpoint: WebhookEndpoint) -> None:
    stale = everything(endpoint)
    WebhookEndpoint.objects.filter(pk=endpoint.pk).delete()
    assert deliveries.store(
        [event(1, "cache_miss")], partition=0, log_id="one", after=0, upto=1, route=stale, debounce_seconds=3
    ) == (
        set(),
        0,
    )


def test_pending_deliveries_come_in_order_and_without_the_excluded_channels(endpoint: WebhookEndpoint) -> None:
    store(endpoint, event(1, "cache_miss", "a"), event(2, "cache_miss", "b"), event(3, "channel_occupied", "a"))
    assert [row.channel for row in deliveries.pending(endpoint.pk, (), 10)] == ["a", "b", "a"]
    assert [row.channel for row in deliveries.pending(endpoint.pk, {"a"}, 10)] == ["b"]
    assert deliveries.waiting_endpoints() == [endpoint.pk]


def test_result_of_the_last_attempt_is_stored(endpoint: WebhookEndpoint) -> None:
    store(endpoint, event(1, "cache_miss"))
    row = models.Delivery.objects.get()
    deliveries.postponed([row.pk], timezone.now().timestamp() + 5, REFUSED)
    row.refresh_from_db()
    assert (row.state, row.attempts, row.status, row.error, row.answer) == ("pending", 1, 500, "HTTP 500", "no")
    deliveries.delivered([row.pk], ACCEPTED)
    row.refresh_from_db()
    assert (row.state, row.attempts, row.error, row.next_at) == ("delivered", 2, "", None)
    assert row.finished_at is not None


@pytest.mark.parametrize("use_tz", [True, False])
def test_times_are_stored_with_and_without_time_zones(
    endpoint: WebhookEndpoint, settings: Settings, use_tz: bool
) -> None:
    settings.USE_TZ = use_tz
    store(endpoint, event(1, "cache_miss"))
    (row,) = deliveries.pending(endpoint.pk, (), 10)
    deliveries.postponed([row.id], row.created + 5, REFUSED)
    (row,) = deliveries.pending(endpoint.pk, (), 10)
    assert row.next_at == pytest.approx(row.created + 5, abs=0.001)
    assert deliveries.give_up(endpoint.pk, row.created - 1) == 0
    assert deliveries.give_up(endpoint.pk, row.created + 1) == 1


def test_redelivery_is_a_new_row_behind_the_pending_ones(endpoint: WebhookEndpoint) -> None:
    store(endpoint, event(1, "cache_miss"), event(2, "channel_occupied"))
    old = models.Delivery.objects.earliest("id")
    deliveries.failed([old.pk], REFUSED)
    deliveries.redeliver([old])
    assert [row.payload for row in deliveries.pending(endpoint.pk, (), 10)] == [
        '{"name":"channel_occupied"}',
        '{"name":"cache_miss"}',
    ]
    old.refresh_from_db()
    assert old.state == "failed"
    assert old.repeated_by.get().attempts == 0


def test_finished_deliveries_are_deleted_when_they_are_too_old_or_too_many(endpoint: WebhookEndpoint) -> None:
    store(endpoint, *(event(number, "cache_miss") for number in range(1, 8)))
    rows = list(models.Delivery.objects.order_by("id"))
    for age, row in zip((500, 40, 30, 20, 10), rows, strict=False):
        deliveries.delivered([row.pk], ACCEPTED)
        models.Delivery.objects.filter(pk=row.pk).update(finished_at=timezone.now() - dt.timedelta(seconds=age))
    assert deliveries.trim(keep_seconds=100, keep_rows=3) == 2
    kept = list(models.Delivery.objects.order_by("id").values_list("pk", flat=True))
    assert kept == [row.pk for row in rows[2:]], "pending ones stay, and the newest three of the others"


def test_health_is_one_row_per_endpoint(endpoint: WebhookEndpoint) -> None:
    deliveries.save_health(endpoint.pk, 5, 30.0, REFUSED)
    health = models.EndpointHealth.objects.get()
    assert (health.is_open, health.failures, health.error) == (True, 5, "HTTP 500")
    deliveries.save_health(endpoint.pk, 0, None, ACCEPTED)
    health.refresh_from_db()
    assert (health.is_open, health.failures, health.error) == (False, 0, "HTTP 500")
    assert health.succeeded_at is not None and health.failed_at is not None
    deliveries.save_health(endpoint.pk + 1, 0, None, ACCEPTED)
    assert models.EndpointHealth.objects.count() == 1


def test_pending_deliveries_are_counted_by_endpoint(endpoint: WebhookEndpoint) -> None:
    store(endpoint, event(1, "cache_miss"), event(2, "cache_miss"))
    deliveries.delivered([models.Delivery.objects.earliest("id").pk], ACCEPTED)
    assert deliveries.pending_counts() == {endpoint.pk: 1}


def test_due_removals_are_delivered_in_bounded_transactions(
    endpoint: WebhookEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliveries, "RELEASE_ROWS", 2)
    store(endpoint, *(event(n, events.VACATED, f"c{n}", key=str(n)) for n in (1, 2, 3)), debounce=0)
    assert deliveries.release(everything(endpoint)) == ({endpoint.pk}, 0.0)
    assert deliveries.release(everything(endpoint)) == ({endpoint.pk}, None)
    assert names() == [events.VACATED] * 3
