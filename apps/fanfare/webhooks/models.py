"""The outbox in Django's database.

An event for one endpoint is a Delivery; the order of their ids is the order in which a channel's events are sent. A
departure (a channel that was vacated, a member who left) waits in a table of its own until it is clear that nobody came
back, and becomes a Delivery then. Position says up to where the log was turned into these rows, and is written in
their transaction: so a crash at any moment neither loses an event nor makes one twice.
"""

from __future__ import annotations

from django.core.validators import MaxLengthValidator
from django.db import models


class State(models.TextChoices):
    PENDING = "pending", "Waiting"
    DELIVERED = "delivered", "Delivered"
    FAILED = "failed", "Failed"


class Delivery(models.Model):
    """One event for one endpoint, and what became of it."""

    webhook = models.ForeignKey(
        "fanfare.WebhookEndpoint", on_delete=models.CASCADE, related_name="deliveries", verbose_name="endpoint"
    )
    event = models.CharField(max_length=32)
    channel = models.TextField(validators=[MaxLengthValidator(1_000)])
    payload = models.TextField(help_text="The event as it is sent: JSON.")
    entry = models.BigIntegerField("log entry", help_text="Its id in the log of the engine.")
    created_at = models.DateTimeField("created")

    state = models.CharField(max_length=9, choices=State, default=State.PENDING)
    attempts = models.PositiveIntegerField(default=0)
    next_at = models.DateTimeField("next attempt", null=True, blank=True)
    finished_at = models.DateTimeField("finished", null=True, blank=True)

    # Of the last attempt.
    status = models.PositiveSmallIntegerField("HTTP status", null=True, blank=True)
    error = models.TextField(blank=True, default="")
    answer = models.TextField(blank=True, default="", help_text="The beginning of what the receiver answered.")
    duration_ms = models.PositiveIntegerField("duration", null=True, blank=True)

    repeats = models.ForeignKey(
        "self", on_delete=models.SET_NULL, null=True, blank=True, related_name="repeated_by", editable=False
    )

    class Meta:
        verbose_name_plural = "deliveries"
        ordering = ("-id",)
        indexes = (
            # What a lane reads, and nothing else is in it.
            models.Index(fields=("webhook", "id"), condition=models.Q(state="pending"), name="webhooks_pending"),
            models.Index(fields=("finished_at",), name="webhooks_finished"),
        )

    def __str__(self) -> str:
        return f"{self.event} of {self.channel}"


class Departure(models.Model):
    """A channel or a member that is gone, and may come back before anybody is told."""

    app_id = models.CharField(max_length=15)
    key = models.CharField(max_length=64, help_text="SHA-256 of the payload: who left where.")
    event = models.CharField(max_length=32)
    channel = models.TextField()
    payload = models.TextField()
    entry = models.BigIntegerField()
    due_at = models.DateTimeField(db_index=True)

    class Meta:
        constraints = (models.UniqueConstraint(fields=("app_id", "key"), name="fanfare_departure_who"),)

    def __str__(self) -> str:
        return f"{self.event} of {self.channel}"


class Position(models.Model):
    """Up to which entry the log was turned into rows. One row.

    `log` is the epoch of a stream of the log: after a log was deleted, or rolled back by a loss of power, its ids start
    again, and a position of the old one says nothing about the new one.
    """

    ROW = 1

    log = models.CharField(max_length=64, blank=True, default="")
    entry = models.BigIntegerField(default=0)

    def __str__(self) -> str:
        return f"{self.log}:{self.entry}"


class Health(models.Model):
    """How an endpoint does, for people: the circuit breaker itself lives in the worker that delivers."""

    webhook = models.OneToOneField(
        "fanfare.WebhookEndpoint", on_delete=models.CASCADE, related_name="health", verbose_name="endpoint"
    )
    is_open = models.BooleanField("circuit open", default=False, help_text="It is only probed, one event at a time.")
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
