"""The outbox table: events that wait in Django's database until they are in the log."""

from __future__ import annotations

import uuid

import orjson
from django.db import models
from django.utils import timezone


class OutboxEvent(models.Model):
    """An event that the publishing transaction writes; the row is deleted when the event is in the log.

    A row remains if its process ended or could not reach the log; the relay then sends it. A row with `failed_at`
    cannot be sent and stays until an operator retries or deletes it.
    """

    # SQLite reuses the id of a row that was rolled back; a uid is unique.
    uid = models.UUIDField(default=uuid.uuid4, editable=False)
    app_id = models.CharField("application", max_length=15)
    channel = models.TextField()
    frame = models.TextField(help_text="The JSON text that subscribers get.")
    exclude = models.CharField(
        max_length=64, blank=True, default="", help_text="The socket id of the client that does not get the event."
    )
    idempotency_key = models.CharField(max_length=128, blank=True, default="")
    created_at = models.DateTimeField("created", default=timezone.now)

    failed_at = models.DateTimeField("failed", null=True, blank=True)
    reason = models.TextField(blank=True, default="")

    class Meta:
        verbose_name = "outbox event"
        ordering = ("id",)
        indexes = (
            # For the relay's query, which runs every few seconds and usually finds nothing.
            models.Index(fields=("id",), condition=models.Q(failed_at=None), name="fanfare_outbox_waiting"),
            models.Index(
                fields=("failed_at",), condition=models.Q(failed_at__isnull=False), name="fanfare_outbox_failed"
            ),
        )

    def __str__(self) -> str:
        return f"event on {self.channel}"

    @property
    def event(self) -> str:
        """Raises ValueError or KeyError if the frame is damaged."""
        name: str = orjson.loads(self.frame)["event"]
        return name

    @property
    def data(self) -> str:
        """The data as subscribers get it. Raises ValueError or KeyError if the frame is damaged."""
        text: str = orjson.loads(self.frame)["data"]
        return text
