"""The tables of webhooks.

A Delivery is one event for one endpoint; the order of their ids is the order in which a channel's events are sent. A
removal (a vacated channel, a member who left) waits as a PendingRemoval for three seconds. If the channel or the member
returns in that time, neither event is sent; otherwise it becomes a Delivery. LogPosition is the last entry of the
log for which rows were created. It is written in their transaction, so a crash neither loses an event nor stores it
twice.
"""

from __future__ import annotations

from django.core.validators import MaxLengthValidator
from django.db import models


class State(models.TextChoices):
    PENDING = "pending", "Pending"
    DELIVERED = "delivered", "Delivered"
    FAILED = "failed", "Failed"


class Delivery(models.Model):
    """One event for one endpoint, with the result of the last attempt."""

    webhook = models.ForeignKey(
        "fanfare.WebhookEndpoint", on_delete=models.CASCADE, related_name="deliveries", verbose_name="endpoint"
    )
    event = models.CharField(max_length=32)
    channel = models.TextField(validators=[MaxLengthValidator(1_000)])
    payload = models.TextField(help_text="The event as JSON, as in the body of the request.")
    entry = models.BigIntegerField("log entry", help_text="The id of the event in the engine's log.")
    created_at = models.DateTimeField("created")

    state = models.CharField(max_length=9, choices=State, default=State.PENDING)
    attempts = models.PositiveIntegerField(default=0)
    next_at = models.DateTimeField("next attempt", null=True, blank=True)
    finished_at = models.DateTimeField("finished", null=True, blank=True)

    # Of the last attempt.
    status = models.PositiveSmallIntegerField("HTTP status", null=True, blank=True)
    error = models.TextField(blank=True, default="")
    answer = models.TextField(blank=True, default="", help_text="The beginning of the response's body.")
    duration_ms = models.PositiveIntegerField("duration", null=True, blank=True)

    repeats = models.ForeignKey(
        "self", on_delete=models.SET_NULL, null=True, blank=True, related_name="repeated_by", editable=False
    )

    class Meta:
        verbose_name_plural = "deliveries"
        ordering = ("-id",)
        indexes = (
            # Covers only the rows that an endpoint's queue reads.
            models.Index(
                fields=("webhook", "id"), condition=models.Q(state="pending"), name="fanfare_delivery_pending"
            ),
            models.Index(fields=("finished_at",), name="fanfare_delivery_finished"),
        )

    def __str__(self) -> str:
        return f"{self.event} of {self.channel}"


class PendingRemoval(models.Model):
    """A channel that was vacated, or a member who left, less than three seconds ago."""

    app_id = models.CharField(max_length=15)
    key = models.CharField(max_length=64, help_text="SHA-256 of the payload: the channel or the member.")
    event = models.CharField(max_length=32)
    channel = models.TextField()
    payload = models.TextField()
    entry = models.BigIntegerField()
    due_at = models.DateTimeField(db_index=True)

    class Meta:
        constraints = (models.UniqueConstraint(fields=("app_id", "key"), name="fanfare_pendingremoval_key"),)

    def __str__(self) -> str:
        return f"{self.event} of {self.channel}"


class LogPosition(models.Model):
    """The last entry of a partition of the log for which rows were created.

    `log_id` changes when the log was deleted or lost its last entries in a power failure: ids start again then, and
    positions of the old log do not apply to the new one.
    """

    partition = models.PositiveSmallIntegerField(unique=True)
    log_id = models.CharField(max_length=64, blank=True, default="")
    entry = models.BigIntegerField(default=0)

    def __str__(self) -> str:
        return f"partition {self.partition} of log {self.log_id}: entry {self.entry}"


class EndpointHealth(models.Model):
    """The state of an endpoint, for display. The circuit breaker itself is in the worker that sends."""

    webhook = models.OneToOneField(
        "fanfare.WebhookEndpoint", on_delete=models.CASCADE, related_name="health", verbose_name="endpoint"
    )
    is_open = models.BooleanField(
        "circuit open", default=False, help_text="While the circuit is open, one event at a time is sent as a probe."
    )
    failures = models.PositiveIntegerField("failures in a row", default=0)
    retry_at = models.DateTimeField("next probe", null=True, blank=True)
    succeeded_at = models.DateTimeField("last success", null=True, blank=True)
    failed_at = models.DateTimeField("last failure", null=True, blank=True)
    error = models.TextField("last error", blank=True, default="")

    class Meta:
        verbose_name = "endpoint health"
        verbose_name_plural = "endpoint health"

    def __str__(self) -> str:
        return str(self.webhook)
