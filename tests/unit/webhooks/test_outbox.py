"""The tables of the outbox."""

from __future__ import annotations

import datetime as dt

import pytest
from django.utils import timezone

from fanfare.applications import registry
from fanfare.applications.models import WebhookEndpoint
from fanfare.webhooks import courier, errors, events, models, outbox

pytestmark = pytest.mark.django_db(transaction=True)

ACCEPTED = courier.Outcome(200, "", "", 12)
REFUSED = courier.Outcome(500, "HTTP 500", "no", 12)


def event(entry: int, name: str, channel: str = "news", who: str = "") -> events.Event:
    return events.Event(entry, "42", name, channel, f'{{"name":"{name}"}}', who)


def everybody(endpoint: WebhookEndpoint) -> outbox.Route:
    return lambda app, name, channel: [registry.Webhook(id=endpoint.pk, url=endpoint.url)]


def collect(
    endpoint: WebhookEndpoint, *found: events.Event, after: int = 0, log: str = "one", debounce: float = 3.0
) -> tuple[set[int], int]:
    return outbox.collect(
        found, log=log, after=after, upto=found[-1].entry, route=everybody(endpoint), debounce_seconds=debounce
    )


@pytest.fixture(autouse=True)
def started() -> None:
    outbox.start("one", 0)


def names() -> list[str]:
    return list(models.Delivery.objects.order_by("id").values_list("event", flat=True))


def test_rows_and_the_position_are_one_transaction(endpoint: WebhookEndpoint) -> None:
    assert collect(endpoint, event(3, "channel_occupied"), event(5, "cache_miss")) == ({endpoint.pk}, 0)
    assert names() == ["channel_occupied", "cache_miss"]
    assert outbox.position().entry == 5


def test_the_same_entries_are_not_collected_twice(endpoint: WebhookEndpoint) -> None:
    collect(endpoint, event(3, "channel_occupied"))
    with pytest.raises(errors.Overtaken):
        collect(endpoint, event(3, "channel_occupied"))
    assert names() == ["channel_occupied"]


def test_a_position_in_another_log_says_nothing(endpoint: WebhookEndpoint) -> None:
    with pytest.raises(errors.Overtaken):
        collect(endpoint, event(3, "channel_occupied"), log="two")


def test_a_return_takes_the_departure_back_and_is_not_told_itself(endpoint: WebhookEndpoint) -> None:
    assert collect(endpoint, event(1, events.VACATED, who="a"))[0] == set()
    assert collect(endpoint, event(2, events.OCCUPIED, who="a"), after=1) == (set(), 1)
    assert names() == []
    assert not models.Departure.objects.exists()


def test_a_departure_and_its_return_in_one_batch_cancel_each_other(endpoint: WebhookEndpoint) -> None:
    assert collect(endpoint, event(1, events.VACATED, who="a"), event(2, events.OCCUPIED, who="a"))[1] == 1
    assert names() == []


def test_somebody_elses_return_takes_nothing_back(endpoint: WebhookEndpoint) -> None:
    collect(endpoint, event(1, events.MEMBER_REMOVED, who="ann"), event(2, events.MEMBER_ADDED, who="ben"))
    assert names() == ["member_added"]
    assert models.Departure.objects.count() == 1


def test_who_leaves_again_waits_anew(endpoint: WebhookEndpoint) -> None:
    collect(endpoint, event(1, events.VACATED, who="a"))
    first = models.Departure.objects.get().due_at
    collect(endpoint, event(2, events.OCCUPIED, who="a"), event(3, events.VACATED, who="a"), after=1)
    assert models.Departure.objects.get().due_at > first


def test_departures_are_told_when_they_are_due_and_not_before(endpoint: WebhookEndpoint) -> None:
    collect(endpoint, event(1, events.MEMBER_REMOVED, who="ann"), event(2, events.VACATED, who="a"), debounce=60)
    endpoints, wait = outbox.release(everybody(endpoint))
    assert endpoints == set()
    assert wait is not None and 50 < wait <= 60
    models.Departure.objects.update(due_at=timezone.now())
    assert outbox.release(everybody(endpoint)) == ({endpoint.pk}, None)
    assert names() == ["member_removed", "channel_vacated"]


def test_a_deleted_endpoint_that_a_worker_still_knows_does_no_harm(endpoint: WebhookEndpoint) -> None:
    stale = everybody(endpoint)
    endpoint.pk, gone = endpoint.pk, endpoint.pk
    WebhookEndpoint.objects.filter(pk=gone).delete()
    assert outbox.collect([event(1, "cache_miss")], log="one", after=0, upto=1, route=stale, debounce_seconds=3) == (
        set(),
        0,
    )


def test_what_waits_comes_in_order_and_without_the_channels_under_way(endpoint: WebhookEndpoint) -> None:
    collect(endpoint, event(1, "cache_miss", "a"), event(2, "cache_miss", "b"), event(3, "channel_occupied", "a"))
    assert [row.channel for row in outbox.pending(endpoint.pk, (), 10)] == ["a", "b", "a"]
    assert [row.channel for row in outbox.pending(endpoint.pk, {"a"}, 10)] == ["b"]
    assert outbox.waiting_endpoints() == [endpoint.pk]


def test_results_are_kept_for_people(endpoint: WebhookEndpoint) -> None:
    collect(endpoint, event(1, "cache_miss"))
    row = models.Delivery.objects.get()
    outbox.postponed([row.pk], REFUSED, timezone.now().timestamp() + 5)
    row.refresh_from_db()
    assert (row.state, row.attempts, row.status, row.error, row.answer) == ("pending", 1, 500, "HTTP 500", "no")
    outbox.delivered([row.pk], ACCEPTED)
    row.refresh_from_db()
    assert (row.state, row.attempts, row.error, row.next_at) == ("delivered", 2, "", None)
    assert row.finished_at is not None


def test_a_redelivery_is_a_new_row_behind_what_waits(endpoint: WebhookEndpoint) -> None:
    collect(endpoint, event(1, "cache_miss"), event(2, "channel_occupied"))
    old = models.Delivery.objects.earliest("id")
    outbox.failed([old.pk], REFUSED)
    outbox.redeliver([old])
    assert [row.payload for row in outbox.pending(endpoint.pk, (), 10)] == [
        '{"name":"channel_occupied"}',
        '{"name":"cache_miss"}',
    ]
    old.refresh_from_db()
    assert old.state == "failed"
    assert old.repeated_by.get().attempts == 0


def test_finished_rows_go_when_they_are_old_or_too_many(endpoint: WebhookEndpoint) -> None:
    collect(endpoint, *(event(number, "cache_miss") for number in range(1, 8)))
    rows = list(models.Delivery.objects.order_by("id"))
    for age, row in zip((500, 40, 30, 20, 10), rows, strict=False):
        outbox.delivered([row.pk], ACCEPTED)
        models.Delivery.objects.filter(pk=row.pk).update(finished_at=timezone.now() - dt.timedelta(seconds=age))
    assert outbox.trim(keep_seconds=100, keep_rows=3) is False
    kept = list(models.Delivery.objects.order_by("id").values_list("pk", flat=True))
    assert kept == [row.pk for row in rows[2:]], "what waits stays, and the newest three of the others"


def test_health_is_one_row_for_an_endpoint(endpoint: WebhookEndpoint) -> None:
    outbox.save_health(endpoint.pk, REFUSED, 5, 30.0)
    health = models.Health.objects.get()
    assert (health.is_open, health.failures, health.error) == (True, 5, "HTTP 500")
    outbox.save_health(endpoint.pk, ACCEPTED, 0, None)
    health.refresh_from_db()
    assert (health.is_open, health.failures, health.error) == (False, 0, "HTTP 500")
    assert health.succeeded_at is not None and health.failed_at is not None
    outbox.save_health(endpoint.pk + 1, ACCEPTED, 0, None)
    assert models.Health.objects.count() == 1
