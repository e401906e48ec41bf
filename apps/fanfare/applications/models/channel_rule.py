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
        default=0, help_text="Rules are tried in ascending order. Of equal positions, the older rule comes first."
    )
    pattern = models.CharField(
        max_length=limits.BOUNDS["max_channel_name"].most,
        validators=[validate_pattern],
        help_text="A channel name, in which * matches any characters: private-orders-*. Only the first rule that "
        "matches a channel applies to it.",
    )
    history_size = _number("history_size", "The number of events that each channel keeps.")
    history_seconds = _number("history_seconds", "Seconds after which an event is deleted.")
    rewind_count = _number(
        "rewind_count", "A new subscriber gets at most this many of the newest kept events. 0: no limit."
    )
    rewind_seconds = _number(
        "rewind_seconds",
        "A new subscriber gets no event that is older than this many seconds. 0: no limit. If both are 0, a new "
        "subscriber gets no kept events.",
    )
    client_events = models.BooleanField(default=False, help_text="Client events are kept, too.")
    max_replay_entries = _number(
        "max_replay_entries",
        "A client that missed more events than this gets none of them, and a message about the gap.",
    )
    max_replay_bytes = _number("max_replay_bytes", "The same limit, in bytes of the missed events.")
    stream_window_ms = _number(
        "stream_window_ms",
        "Milliseconds in which the appends of a stream are joined. 0: the value of FANFARE_STREAM_WINDOW_MS.",
    )
    stream_cancel = models.BooleanField(
        default=False,
        help_text="Subscribers may cancel streams with the client event client-fanfare-cancel.",
    )
    # The default is the database's, too: workers of an older release insert rows without this column.
    record_members = models.BooleanField(
        default=False,
        db_default=False,
        help_text="The joins and leaves of presence channels are kept, too. The console's time travel shows the "
        "members at each event.",
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
