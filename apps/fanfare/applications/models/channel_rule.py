"""Channel rules: the channels of an application that keep a history."""

from __future__ import annotations

from django.core.exceptions import ValidationError
from django.db import models

from fanfare.applications import limits, rules
from fanfare.applications.models import announced
from fanfare.applications.models.application import Application


def validate_pattern(pattern: str) -> None:
    fault = rules.pattern_fault(pattern)
    if fault:
        raise ValidationError(fault)


def _number(name: str, help_text: str) -> models.PositiveIntegerField[int, int]:
    return models.PositiveIntegerField(
        default=limits.RULE_DEFAULTS[name],
        validators=[limits.AtLeast(name), limits.AtMost(name)],
        help_text=help_text,
    )


class ChannelRuleQuerySet(announced.AnnouncedQuerySet["ChannelRule"]):
    pass


class ChannelRule(announced.Announced):
    """The history of the channels whose names match a pattern. Only the first matching rule applies to a channel."""

    APP_ID = "application__app_id"

    application = models.ForeignKey(Application, models.CASCADE, related_name="rules")
    position = models.PositiveSmallIntegerField(
        default=0, help_text="The lowest number is tried first; of equal ones, the one that was added first."
    )
    pattern = models.CharField(
        max_length=limits.BOUNDS["max_channel_name"].most,
        validators=[validate_pattern],
        help_text="A channel's name, in which * stands for any characters: private-orders-*. The first rule that fits "
        "a channel holds for it.",
    )
    history_size = _number("history_size", "Events that are kept of each channel.")
    history_seconds = _number("history_seconds", "No event is kept for longer.")
    rewind_count = _number(
        "rewind_count", "What each new subscriber gets of them, the newest. 0: as many as the next number lets through."
    )
    rewind_seconds = _number(
        "rewind_seconds", "Of them, none that is older. 0: whatever their age. Both 0: a new subscriber gets nothing."
    )
    client_events = models.BooleanField(default=False, help_text="Events that clients send are kept, too.")
    max_replay_entries = _number(
        "max_replay_entries",
        "A client that missed more events than this gets none of them, and a message that says so.",
    )
    max_replay_bytes = _number("max_replay_bytes", "The same for the bytes of what it has missed.")
    stream_window_ms = _number(
        "stream_window_ms",
        "Milliseconds in which the appends of a stream are joined. 0: as the setting FANFARE_STREAM_WINDOW_MS says.",
    )
    stream_cancel = models.BooleanField(
        default=False,
        help_text="Subscribers may cancel streams, with the client event client-fanfare-cancel.",
    )
    created_at = models.DateTimeField("created", auto_now_add=True)
    updated_at = models.DateTimeField("updated", auto_now=True)

    objects = ChannelRuleQuerySet.as_manager()

    class Meta:
        ordering = ("position", "pk")
        constraints = (
            models.UniqueConstraint(
                fields=("application", "pattern"),
                name="fanfare_channelrule_pattern",
                violation_error_message="Another rule of this application has this pattern.",
            ),
        )

    def __str__(self) -> str:
        return self.pattern

    @property
    def announced_app_id(self) -> str:
        return self.application.app_id
