"""The outbox in the admin: waiting and failed events, to view and to send again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest

from fanfare.integration import models, outbox

if TYPE_CHECKING:  # Django's class takes a type parameter only in its stubs
    Base = admin.ModelAdmin[models.OutboxEvent]
else:
    Base = admin.ModelAdmin


class StateFilter(admin.SimpleListFilter):
    title = "state"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> tuple[tuple[str, str], ...]:
        return ("waiting", "Waiting"), ("failed", "Failed")

    def queryset(self, request: HttpRequest, queryset: QuerySet[models.OutboxEvent]) -> QuerySet[models.OutboxEvent]:
        return queryset if self.value() is None else queryset.filter(failed_at__isnull=self.value() == "waiting")


@admin.register(models.OutboxEvent)
class OutboxEventAdmin(Base):
    list_display = ("created_at", "event_name", "channel", "app_id", "state", "reason")
    list_display_links = ("created_at", "event_name")
    list_filter = (StateFilter, "app_id", "created_at")
    search_fields = ("channel",)
    search_help_text = "Search by channel"
    show_full_result_count = False
    actions = ("retry",)
    empty_list = "Events of FANFARE_OUTBOX and `outbox=True` wait here until they are sent."
    fieldsets = (
        (None, {"fields": ("event_name", "channel", "app_id", "created_at", "failed_at", "reason")}),
        ("The event", {"fields": ("frame", "exclude", "idempotency_key", "uid")}),
    )

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_retry_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("fanfare.change_outboxevent")

    @admin.display(description="event")
    def event_name(self, event: models.OutboxEvent) -> str:
        try:
            return event.event
        except (ValueError, KeyError, TypeError):
            return "(damaged)"

    @admin.display(ordering="failed_at")
    def state(self, event: models.OutboxEvent) -> str:
        return "Waiting" if event.failed_at is None else "Failed"

    @admin.action(description="Send selected failed events again", permissions=["retry"])
    def retry(self, request: HttpRequest, queryset: QuerySet[models.OutboxEvent]) -> None:
        """Failed events only: the relay sends waiting events anyway."""
        failed = list(queryset.filter(failed_at__isnull=False))
        outbox.retry(queryset.db, [event.pk for event in failed])
        for event in failed:
            self.log_change(request, event, "Marked to be sent again.")
        self.message_user(request, f"Events to be sent again: {len(failed)}.", messages.SUCCESS)
