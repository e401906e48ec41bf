"""The outbox in Django's database: events that wait until they are in the log."""

from __future__ import annotations

import uuid

import orjson
from django.db import models
from django.utils import timezone


class OutboxEvent(models.Model):
    """One event, written by the transaction that publishes it, and deleted when it is in the log.

    What is found here later was left behind by a process that died, or could not reach the log: the relay sends it.
    With `failed_at` it cannot be sent as it is, and waits for a person.
    """

    # A rolled back id is given out again on SQLite; this one never is.
    uid = models.UUIDField(default=uuid.uuid4, editable=False)
    app_id = models.CharField("application", max_length=15)
    channel = models.TextField()
    frame = models.TextField(help_text="What subscribers get: JSON, in which no byte is left that a database refuses.")
    exclude = models.CharField(max_length=64, blank=True, default="", help_text="A socket id.")
    idempotency_key = models.CharField(max_length=128, blank=True, default="")
    created_at = models.DateTimeField("created", default=timezone.now)

    failed_at = models.DateTimeField("failed", null=True, blank=True)
    reason = models.TextField(blank=True, default="")

    class Meta:
        verbose_name = "outbox event"
        ordering = ("id",)
        indexes = (
            # What the relay reads, every few seconds: nothing, as a rule.
            models.Index(fields=("id",), condition=models.Q(failed_at=None), name="realtime_outbox_waiting"),
            models.Index(
                fields=("failed_at",), condition=models.Q(failed_at__isnull=False), name="realtime_outbox_failed"
            ),
        )

    def __str__(self) -> str:
        return f"{self.event} on {self.channel}"

    @property
    def event(self) -> str:
        name: str = orjson.loads(self.frame)["event"]
        return name

    @property
    def data(self) -> str:
        """The text that subscribers get."""
        text: str = orjson.loads(self.frame)["data"]
        return text
