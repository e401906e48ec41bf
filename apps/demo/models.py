"""What was said in the room."""

from __future__ import annotations

from typing import Any

from django.db import models

KEPT_MESSAGES = 50  # anybody may write here, so the table must not grow


class Message(models.Model):
    MAX_CHARACTERS = 500

    author_id = models.CharField(max_length=32)
    author = models.CharField(max_length=40)
    text = models.CharField(max_length=MAX_CHARACTERS)
    sent_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("pk",)

    def __str__(self) -> str:
        return f"{self.author}: {self.text}"

    def as_data(self) -> dict[str, Any]:
        """What the page needs, as the event's data and as JSON."""
        return {
            "id": self.pk,
            "author_id": self.author_id,
            "author": self.author,
            "text": self.text,
            "sent_at": self.sent_at,
        }

    @classmethod
    def forget_old(cls) -> None:
        """Keep the newest KEPT_MESSAGES."""
        kept = cls.objects.order_by("-pk").values_list("pk", flat=True)[:KEPT_MESSAGES]
        cls.objects.filter(pk__lt=min(kept, default=0)).delete()
