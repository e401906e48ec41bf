"""What is done to the tables of the outbox. Synchronous: call it where Django's database may be waited for.

Only the worker that holds the lease writes here, people in the admin aside. A second one, which thinks that it still
holds it, finds the position somewhere else than it left it and stops.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from django.db import transaction
from django.db.models import F, Q
from django.utils import timezone

from fanfare.applications import registry
from fanfare.applications.models import WebhookEndpoint
from fanfare.webhooks import courier, errors, events, models

TRIM_ROWS = 1_000  # in one transaction, which other writers wait for on SQLite
GIVEN_UP = "Given up with an earlier event: the endpoint has been failing for too long."

Route = Callable[[str, str, str], Sequence[registry.Webhook]]
"""`route(app, event, channel)`: the endpoints that are to be told."""


class Row(NamedTuple):
    """A delivery that waits, as a lane needs it. `created` and `next_at`: Unix time."""

    id: int
    channel: str
    payload: str
    attempts: int
    created: float
    next_at: float


# -- in --------------------------------------------------------------------------------------------------------------


def position() -> models.Position:
    return models.Position.objects.get_or_create(pk=models.Position.ROW)[0]


def start(log: str, entry: int) -> None:
    """Collect from here on."""
    models.Position.objects.update_or_create(pk=models.Position.ROW, defaults={"log": log, "entry": entry})


def collect(
    found: Sequence[events.Event], *, log: str, after: int, upto: int, route: Route, debounce_seconds: float
) -> tuple[set[int], int]:
    """Turn the events of the entries `after` < id <= `upto` into rows, in one transaction with the position.

    Answers which endpoints have something to do now, and how many departures were taken back. Raises Overtaken.
    """
    with transaction.atomic():
        advance(log, after, upto)
        departures = {
            (departure.app_id, departure.key): departure
            for departure in models.Departure.objects.filter(key__in={event.who for event in found if event.who})
        }
        stored = set(departures)
        told, taken_back = [], 0
        due_at = timezone.now() + dt.timedelta(seconds=debounce_seconds)
        for event in found:
            who = (event.app, event.who)
            if event.name in events.DEPARTURES:
                departures[who] = _departure(event, due_at)
            elif event.name in events.DEPARTURE_OF and departures.pop(who, None) is not None:
                taken_back += 1
            else:
                told.append(event)
        _save_departures(departures, stored)
        return _tell(told, route), taken_back


def release(route: Route) -> tuple[set[int], float | None]:
    """Tell of the departures whose time has come. Answers which endpoints have something to do, and in how many seconds
    the next departure is due."""
    now, endpoints = timezone.now(), set()
    due = list(models.Departure.objects.filter(due_at__lte=now).order_by("due_at", "entry"))
    if due:
        with transaction.atomic():
            endpoints = _tell([_event(departure) for departure in due], route)
            models.Departure.objects.filter(pk__in=[departure.pk for departure in due]).delete()
    first = models.Departure.objects.order_by("due_at").values_list("due_at", flat=True).first()
    return endpoints, None if first is None else max(0.0, (first - now).total_seconds())


def advance(log: str, after: int, upto: int) -> None:
    """Everything up to `upto` is done with. Raises Overtaken."""
    if not models.Position.objects.filter(pk=models.Position.ROW, log=log, entry=after).update(entry=upto):
        raise errors.Overtaken(f"The outbox does not stand at entry {after} of log {log}")


def _departure(event: events.Event, due_at: dt.datetime) -> models.Departure:
    return models.Departure(
        app_id=event.app,
        key=event.who,
        event=event.name,
        channel=event.channel,
        payload=event.payload,
        entry=event.entry,
        due_at=due_at,
    )


def _save_departures(departures: dict[tuple[str, str], models.Departure], stored: set[tuple[str, str]]) -> None:
    gone = [(app, key) for app, key in stored if departures.get((app, key)) is None or not departures[app, key].pk]
    for app, key in gone:
        models.Departure.objects.filter(app_id=app, key=key).delete()
    models.Departure.objects.bulk_create([departure for departure in departures.values() if not departure.pk])


def _event(departure: models.Departure) -> events.Event:
    return events.Event(departure.entry, departure.app_id, departure.event, departure.channel, departure.payload)


def _tell(told: Sequence[events.Event], route: Route) -> set[int]:
    wanted = [(event, webhook.id) for event in told for webhook in route(event.app, event.name, event.channel)]
    # An endpoint may have been deleted while this worker still knows it.
    there = set(
        WebhookEndpoint.objects.select_for_update()
        .filter(pk__in={endpoint for _, endpoint in wanted})
        .values_list("pk", flat=True)
    )
    now = timezone.now()
    models.Delivery.objects.bulk_create(
        [
            models.Delivery(
                webhook_id=endpoint,
                event=event.name,
                channel=event.channel,
                payload=event.payload,
                entry=event.entry,
                created_at=now,
            )
            for event, endpoint in wanted
            if endpoint in there
        ]
    )
    return there


# -- out -------------------------------------------------------------------------------------------------------------


def waiting_endpoints() -> list[int]:
    """Endpoints with something to deliver."""
    waiting = models.Delivery.objects.filter(state=models.State.PENDING).order_by()  # or each id would be distinct
    return list(waiting.values_list("webhook", flat=True).distinct())


def pending(endpoint: int, but: Collection[str], limit: int) -> list[Row]:
    """What waits for an endpoint, in its order, the channels in `but` left out."""
    rows = (
        models.Delivery.objects.filter(webhook=endpoint, state=models.State.PENDING)
        .exclude(channel__in=but)
        .order_by("id")
        .values_list("id", "channel", "payload", "attempts", "created_at", "next_at")[:limit]
    )
    return [
        Row(id_, channel, payload, attempts, created.timestamp(), next_at.timestamp() if next_at else 0.0)
        for id_, channel, payload, attempts, created, next_at in rows
    ]


def delivered(ids: Collection[int], outcome: courier.Outcome) -> None:
    models.Delivery.objects.filter(pk__in=ids).update(
        state=models.State.DELIVERED, next_at=None, finished_at=timezone.now(), **_attempt(outcome)
    )


def postponed(ids: Collection[int], outcome: courier.Outcome, until: float) -> None:
    """`until`: Unix time of the next attempt."""
    next_at = dt.datetime.fromtimestamp(until, dt.UTC)
    models.Delivery.objects.filter(pk__in=ids).update(next_at=next_at, **_attempt(outcome))


def failed(ids: Collection[int], outcome: courier.Outcome) -> None:
    models.Delivery.objects.filter(pk__in=ids).update(
        state=models.State.FAILED, next_at=None, finished_at=timezone.now(), **_attempt(outcome)
    )


def give_up(endpoint: int, created_before: float) -> int:
    """Fail what has waited too long for an endpoint that was tried again and again. How many that are."""
    return models.Delivery.objects.filter(
        webhook=endpoint,
        state=models.State.PENDING,
        created_at__lt=dt.datetime.fromtimestamp(created_before, dt.UTC),
    ).update(state=models.State.FAILED, next_at=None, finished_at=timezone.now(), error=GIVEN_UP)


def forgive(endpoint: int) -> None:
    """The endpoint is back: nothing waits for its next attempt any longer."""
    models.Delivery.objects.filter(webhook=endpoint, state=models.State.PENDING, next_at__isnull=False).update(
        next_at=None
    )


def save_health(endpoint: int, outcome: courier.Outcome, failures: int, retry_in: float | None) -> None:
    """`retry_in`: seconds until the next probe while the circuit is open, else None."""
    now = timezone.now()
    values = {
        "failures": failures,
        "is_open": retry_in is not None,
        "retry_at": None if retry_in is None else now + dt.timedelta(seconds=retry_in),
        **({"succeeded_at": now} if outcome.accepted else {"failed_at": now, "error": outcome.error}),
    }
    known = models.Health.objects.filter(webhook=endpoint).update(**values)
    if not known and WebhookEndpoint.objects.filter(pk=endpoint).exists():
        models.Health.objects.create(webhook_id=endpoint, **values)


def _attempt(outcome: courier.Outcome) -> dict[str, object]:
    return {
        "attempts": F("attempts") + 1,
        "status": outcome.status,
        "error": outcome.error,
        "answer": outcome.answer,
        "duration_ms": outcome.duration_ms,
    }


# -- for people ------------------------------------------------------------------------------------------------------


def redeliver(deliveries: Sequence[models.Delivery]) -> None:
    """Send them once more, as new events behind everything that waits; the old rows stay as they are."""
    now = timezone.now()
    models.Delivery.objects.bulk_create(
        [
            models.Delivery(
                webhook_id=delivery.webhook_id,
                event=delivery.event,
                channel=delivery.channel,
                payload=delivery.payload,
                entry=delivery.entry,
                created_at=now,
                repeats=delivery,
            )
            for delivery in deliveries
        ]
    )


def trim(keep_seconds: float, keep_rows: int) -> bool:
    """Forget what is finished and too old, or too much. True: there may be more of it."""
    finished = models.Delivery.objects.filter(finished_at__isnull=False)
    oldest_kept = finished.order_by("-finished_at").values_list("finished_at", flat=True)[keep_rows : keep_rows + 1]
    old = Q(finished_at__lt=timezone.now() - dt.timedelta(seconds=keep_seconds))
    for limit in oldest_kept:
        old |= Q(finished_at__lte=limit)
    ids = list(finished.filter(old).order_by("finished_at").values_list("pk", flat=True)[:TRIM_ROWS])
    if ids:
        models.Delivery.objects.filter(pk__in=ids).delete()
    return len(ids) == TRIM_ROWS
