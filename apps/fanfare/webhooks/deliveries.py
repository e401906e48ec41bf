"""Reads and writes of the tables of webhooks. Synchronous: call it in a thread of Django's database.

Only the worker with the lease and users of the admin write here. A worker that has lost the lease without noticing
finds a position that it did not write, and stops.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple, TypeVar

from django.conf import settings
from django.db import models as django_models
from django.db import router, transaction
from django.db.models import Count, F, Q, QuerySet
from django.utils import timezone

from fanfare.applications import registry
from fanfare.applications.models import WebhookEndpoint
from fanfare.webhooks import errors, events, models
from fanfare.webhooks.outcome import Outcome

TRIM_ROWS = 1_000  # per transaction: on SQLite, other writers wait for it
RELEASE_ROWS = 1_000  # due removals per transaction
GIVEN_UP = "Given up with an earlier event: the endpoint has been failing for too long."

Route = Callable[[str, str, str], Sequence[registry.Webhook]]
"""`route(app, event, channel)`: the endpoints of an event."""


class Row(NamedTuple):
    """A pending delivery. `created` and `next_at`: Unix time."""

    id: int
    channel: str
    payload: str
    attempts: int
    created: float
    next_at: float


Model = TypeVar("Model", bound=django_models.Model)


def using() -> str:
    """The alias of the database to which these tables are written. Reads use it as well, because a replica may lag."""
    return router.db_for_write(models.Delivery)


def _rows(model: type[Model]) -> QuerySet[Model]:
    return model._default_manager.using(using())


# -- from the log ----------------------------------------------------------------------------------------------------


def position(partition: int) -> models.LogPosition:
    return _rows(models.LogPosition).get_or_create(partition=partition)[0]


def start(partition: int, log_id: str, entry: int) -> None:
    """Set the position."""
    _rows(models.LogPosition).update_or_create(partition=partition, defaults={"log_id": log_id, "entry": entry})


def continue_from(starts: Sequence[tuple[int, str, int]]) -> None:
    """After a move of the log: set the position of each partition, with the log's id, to the first entries that were
    not read in the old store. Without webhooks there is no position."""
    with transaction.atomic(using=using()):
        if starts and _rows(models.LogPosition).exists():
            _rows(models.LogPosition).all().delete()
            for partition, log_id, entry in starts:
                start(partition, log_id, entry)


def advance(partition: int, log_id: str, after: int, upto: int) -> None:
    """Move the position from `after` to `upto`. Raises Overtaken."""
    rows = _rows(models.LogPosition).filter(partition=partition, log_id=log_id, entry=after)
    if not rows.update(entry=upto):
        raise errors.Overtaken(f"The stored position is not entry {after} of log {log_id}")


def store(
    found: Sequence[events.Event],
    *,
    partition: int,
    log_id: str,
    after: int,
    upto: int,
    route: Route,
    debounce_seconds: float,
) -> tuple[set[int], int]:
    """Store the events of the entries `after` < id <= `upto`, in one transaction with the position.

    Returns the endpoints that have pending deliveries now, and the number of cancelled removals. Raises Overtaken.
    """
    with transaction.atomic(using=using()):
        advance(partition, log_id, after, upto)
        removals = {
            (removal.app_id, removal.key): removal
            for removal in _rows(models.PendingRemoval).filter(key__in={event.key for event in found if event.key})
        }
        stored = dict(removals)
        now_sent, cancelled = [], 0
        due_at = timezone.now() + dt.timedelta(seconds=debounce_seconds)
        for event in found:
            key = (event.app, event.key)
            if event.name in events.REMOVALS:
                removals[key] = _removal(event, due_at)
            elif event.name in events.REMOVAL_OF and removals.pop(key, None) is not None:
                cancelled += 1
            else:
                now_sent.append(event)
        outdated = [removal.pk for key, removal in stored.items() if removals.get(key) is not removal]
        _rows(models.PendingRemoval).filter(pk__in=outdated).delete()
        _rows(models.PendingRemoval).bulk_create([removal for removal in removals.values() if not removal.pk])
        return _deliver(now_sent, route), cancelled


def release(route: Route) -> tuple[set[int], float | None]:
    """Turn due removals into deliveries.

    Returns the endpoints that have pending deliveries now, and the seconds until the next removal is due.
    """
    now, endpoints = timezone.now(), set()
    due = _rows(models.PendingRemoval).filter(due_at__lte=now)
    if due.exists():
        with transaction.atomic(using=using()):
            removals = list(due.select_for_update().order_by("due_at", "entry")[:RELEASE_ROWS])
            endpoints = _deliver([_event(removal) for removal in removals], route)
            _rows(models.PendingRemoval).filter(pk__in=[removal.pk for removal in removals]).delete()
    first = _rows(models.PendingRemoval).order_by("due_at").values_list("due_at", flat=True).first()
    return endpoints, None if first is None else max(0.0, (first - now).total_seconds())


def _removal(event: events.Event, due_at: dt.datetime) -> models.PendingRemoval:
    return models.PendingRemoval(
        app_id=event.app,
        key=event.key,
        event=event.name,
        channel=event.channel,
        payload=event.payload,
        entry=event.entry,
        due_at=due_at,
    )


def _event(removal: models.PendingRemoval) -> events.Event:
    return events.Event(removal.entry, removal.app_id, removal.event, removal.channel, removal.payload)


def _deliver(found: Sequence[events.Event], route: Route) -> set[int]:
    """Create pending deliveries. Returns their endpoints."""
    wanted = [(event, webhook.id) for event in found for webhook in route(event.app, event.name, event.channel)]
    # An endpoint may have been deleted although the worker's registry still has it.
    existing = set(
        _rows(WebhookEndpoint)
        .select_for_update()
        .filter(pk__in={endpoint for _, endpoint in wanted})
        .values_list("pk", flat=True)
    )
    now = timezone.now()
    _rows(models.Delivery).bulk_create(
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
            if endpoint in existing
        ]
    )
    return existing


# -- to the endpoints ------------------------------------------------------------------------------------------------


def _pending() -> QuerySet[models.Delivery]:
    return _rows(models.Delivery).filter(state=models.State.PENDING)


def pending_counts() -> dict[int, int]:
    """The number of pending deliveries by endpoint."""
    return dict(_pending().order_by().values_list("webhook").annotate(Count("id")))


def waiting_endpoints() -> list[int]:
    """The endpoints with pending deliveries."""
    return list(
        _pending().order_by().values_list("webhook", flat=True).distinct()
    )  # an ordering would make each row distinct


def pending(endpoint: int, but: Collection[str], limit: int) -> list[Row]:
    """The oldest pending deliveries of an endpoint, without those of the channels in `but`."""
    rows = (
        _pending()
        .filter(webhook=endpoint)
        .exclude(channel__in=but)
        .order_by("id")
        .values_list("id", "channel", "payload", "attempts", "created_at", "next_at")[:limit]
    )
    return [
        Row(id_, channel, payload, attempts, created.timestamp(), next_at.timestamp() if next_at else 0.0)
        for id_, channel, payload, attempts, created, next_at in rows
    ]


def delivered(ids: Collection[int], outcome: Outcome) -> None:
    _rows(models.Delivery).filter(pk__in=ids).update(
        state=models.State.DELIVERED, next_at=None, finished_at=timezone.now(), **_attempt(outcome)
    )


def postponed(ids: Collection[int], until: float, outcome: Outcome) -> None:
    """`until`: Unix time of the next attempt."""
    _rows(models.Delivery).filter(pk__in=ids).update(next_at=_datetime(until), **_attempt(outcome))


def failed(ids: Collection[int], outcome: Outcome) -> None:
    _rows(models.Delivery).filter(pk__in=ids).update(
        state=models.State.FAILED, next_at=None, finished_at=timezone.now(), **_attempt(outcome)
    )


def give_up(endpoint: int, created_before: float, but: Collection[int] = ()) -> int:
    """Fail the deliveries of an endpoint that have been pending for too long, except the rows of `but`. Returns their
    number."""
    old = _pending().filter(webhook=endpoint, created_at__lt=_datetime(created_before))
    return old.exclude(pk__in=but).update(
        state=models.State.FAILED, next_at=None, finished_at=timezone.now(), error=GIVEN_UP
    )


def retry_now(endpoint: int) -> None:
    """The endpoint accepts events again: make all pending deliveries due now."""
    _pending().filter(webhook=endpoint, next_at__isnull=False).update(next_at=None)


def save_health(endpoint: int, failures: int, retry_in: float | None, outcome: Outcome) -> None:
    """`retry_in`: seconds until the next probe while the circuit is open, else None."""
    now = timezone.now()
    values = {
        "failures": failures,
        "is_open": retry_in is not None,
        "retry_at": None if retry_in is None else now + dt.timedelta(seconds=retry_in),
        **({"succeeded_at": now} if outcome.accepted else {"failed_at": now, "error": outcome.error}),
    }
    known = _rows(models.EndpointHealth).filter(webhook=endpoint).update(**values)
    if not known and _rows(WebhookEndpoint).filter(pk=endpoint).exists():
        _rows(models.EndpointHealth).create(webhook_id=endpoint, **values)


def _datetime(unix: float) -> dt.datetime:
    """For a column of the database: SQLite and MySQL refuse a time zone if the project has `USE_TZ = False`."""
    return dt.datetime.fromtimestamp(unix, dt.UTC if settings.USE_TZ else None)


def _attempt(outcome: Outcome) -> dict[str, object]:
    return {
        "attempts": F("attempts") + 1,
        "status": outcome.status,
        "error": outcome.error,
        "answer": outcome.answer,
        "duration_ms": outcome.duration_ms,
    }


# -- for the admin ---------------------------------------------------------------------------------------------------


def redeliver(finished: Sequence[models.Delivery]) -> None:
    """Send the deliveries again, as new rows after the pending ones. The old rows are not changed."""
    now = timezone.now()
    _rows(models.Delivery).bulk_create(
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
            for delivery in finished
        ]
    )


def trim(keep_seconds: float, keep_rows: int) -> int:
    """Delete up to `TRIM_ROWS` finished deliveries that are too old or too many. Returns their number."""
    finished = _rows(models.Delivery).filter(finished_at__isnull=False)
    newest_of_too_many = finished.order_by("-finished_at").values_list("finished_at", flat=True)[
        keep_rows : keep_rows + 1
    ]
    old = Q(finished_at__lt=timezone.now() - dt.timedelta(seconds=keep_seconds))
    for limit in newest_of_too_many:
        old |= Q(finished_at__lte=limit)
    ids = list(finished.filter(old).order_by("finished_at").values_list("pk", flat=True)[:TRIM_ROWS])
    if ids:
        _rows(models.Delivery).filter(pk__in=ids).delete()
    return len(ids)
