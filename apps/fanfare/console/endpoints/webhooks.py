"""Webhook endpoints with their health and newest deliveries; pause and redelivery."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

from asgiref.sync import ThreadSensitiveContext, sync_to_async
from django import db
from django.db.models import Count, Q

from fanfare.console import audit
from fanfare.console.requests import Problem, Request, endpoint

NEWEST: Final = 50  # deliveries of one answer
TEXT_CHARACTERS: Final = 4_000  # of a body and of an answer

T = TypeVar("T")


async def _in_database(function: Callable[[], T]) -> T:
    """Run in a thread, whose database connections are closed afterwards."""

    def run() -> T:
        try:
            return function()
        finally:
            db.connections.close_all()

    async with ThreadSensitiveContext():
        return await sync_to_async(run)()


@endpoint("webhooks")
async def webhooks(request: Request) -> Any:
    """The endpoints of the user's applications, and the newest deliveries: of one `endpoint`, or in one `state`."""
    allowed = request.access.applications()
    chosen, state = request.number("endpoint", 0, most=2**62), request.query.get("state", "")

    def read() -> dict[str, Any]:
        from fanfare.applications.models import WebhookEndpoint
        from fanfare.webhooks import models

        endpoints = WebhookEndpoint.objects.select_related("application", "health").annotate(
            pending=Count("deliveries", filter=Q(deliveries__state=models.State.PENDING))
        )
        deliveries = models.Delivery.objects.select_related("webhook__application").order_by("-id")
        if allowed is not None:
            endpoints = endpoints.filter(application__app_id__in=allowed)
            deliveries = deliveries.filter(webhook__application__app_id__in=allowed)
        if chosen:
            deliveries = deliveries.filter(webhook_id=chosen)
        if state in models.State.values:
            deliveries = deliveries.filter(state=state)
        return {
            "endpoints": [_endpoint(one) for one in endpoints],
            "deliveries": [_delivery(one) for one in deliveries[:NEWEST]],
        }

    return await _in_database(read)


def _endpoint(one: Any) -> dict[str, Any]:
    health = getattr(one, "health", None)
    return {
        "id": one.pk,
        "app": one.application.app_id,
        "application": one.application.name,
        "url": one.masked_url,
        "enabled": one.enabled and one.application.enabled,
        "declared": one.application.declared,
        "pending": one.pending,
        "open": bool(health and health.is_open),
        "failures": health.failures if health else 0,
        "error": health.error if health else "",
        "retry_at": health.retry_at.timestamp() if health and health.retry_at else None,
        "succeeded_at": health.succeeded_at.timestamp() if health and health.succeeded_at else None,
    }


def _delivery(one: Any) -> dict[str, Any]:
    return {
        "id": one.pk,
        "app": one.webhook.application.app_id,
        "url": one.webhook.masked_url,
        "event": one.event,
        "channel": one.channel,
        "created": one.created_at.timestamp(),
        "state": one.state,
        "attempts": one.attempts,
        "status": one.status,
        "error": one.error,
        "took_ms": one.duration_ms,
        "body": one.payload[:TEXT_CHARACTERS],
        "answer": one.answer[:TEXT_CHARACTERS],
    }


@endpoint("webhooks/pause", method="POST", permission="manage_webhooks")
async def pause(request: Request) -> Any:
    """Pause an endpoint, or end its pause (`enabled`)."""
    app = request.application("manage_webhooks")
    enabled, pk = bool(request.body.get("enabled")), request.body.get("endpoint")

    def find() -> Any:
        from fanfare.applications.models import WebhookEndpoint

        return WebhookEndpoint.objects.filter(application__app_id=app.id, pk=pk if isinstance(pk, int) else 0).first()

    found = await _in_database(find)
    if found is None:
        raise Problem(404, "This webhook no longer exists.")
    if await _in_database(lambda: found.application.declared):
        raise Problem(409, "FANFARE_APPS declares this application: change its webhook there.")
    action = "resume webhook" if enabled else "pause webhook"
    await audit.record(request.access, action, application=app.id, target=found.masked_url)
    found.enabled = enabled
    await _in_database(lambda: found.save(update_fields=["enabled", "updated_at"]))
    return {"done": True}


@endpoint("webhooks/redeliver", method="POST", permission="manage_webhooks")
async def redeliver(request: Request) -> Any:
    """Send a finished delivery again."""
    app = request.application("manage_webhooks")
    pk = request.body.get("delivery")

    def find() -> Any:
        from fanfare.webhooks import models

        rows = models.Delivery.objects.filter(webhook__application__app_id=app.id, pk=pk if isinstance(pk, int) else 0)
        return rows.exclude(state=models.State.PENDING).first()

    found = await _in_database(find)
    if found is None:
        raise Problem(404, "There is no finished delivery of this number; a pending one is sent anyway.")
    detail = {"delivery": found.pk, "event": found.event}
    await audit.record(request.access, "redeliver", application=app.id, target=found.channel, detail=detail)

    def send() -> None:
        from fanfare.webhooks import deliveries

        deliveries.redeliver([found])

    await _in_database(send)
    return {"done": True}
