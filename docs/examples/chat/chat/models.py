from __future__ import annotations

from django.db import models


class Turn(models.Model):
    """A question and its answer. The answer is stored when it is finished; until then it is a stream."""

    chat = models.CharField(max_length=32, db_index=True)
    question = models.CharField(max_length=500)
    answer = models.TextField(blank=True)
    is_finished = models.BooleanField(default=False)

    def __str__(self) -> str:
        return self.question

    @property
    def channel(self) -> str:
        return f"private-chat-{self.chat}"
