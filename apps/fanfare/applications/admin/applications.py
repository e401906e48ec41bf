"""Applications in the admin: the list with its switches, and the page of one application."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django import forms
from django.contrib import admin, messages
from django.db.models import Field, QuerySet
from django.http import HttpRequest
from django.utils import timezone

from fanfare.applications import limits, models
from fanfare.applications.admin.forms import SwitchForm
from fanfare.applications.admin.rules import ChannelRuleInline
from fanfare.applications.admin.secrets import SecretAdmin
from fanfare.applications.admin.webhooks import WebhookInline

if TYPE_CHECKING:  # Django's classes take a type parameter only in their stubs
    ModelForm = forms.ModelForm[models.Application]
else:
    ModelForm = forms.ModelForm

UNITS = {
    "max_connections": "In the whole deployment.",
    "max_event_bytes": "Bytes of an event's data.",
    "max_channels_per_event": "Channels that one call may publish to.",
    "max_batch_events": "Events in one batch call.",
    "max_channel_name": "Characters.",
    "max_event_name": "Characters.",
    "max_presence_members": "Distinct users of one presence channel.",
    "max_member_bytes": "Bytes of what a member tells about itself.",
    "max_user_id": "Characters.",
    "max_watchlist": "Users that one client watches.",
    "max_events_per_second": "Published over HTTP, in the whole deployment.",
    "client_events_per_second": "Of one connection, on average.",
    "client_events_burst": "Of one connection, at once.",
    "authorization_timeout": (
        "Seconds in which a client must sign in or join a private or presence channel; otherwise it is disconnected."
    ),
    "cache_seconds": "Seconds that a cache channel holds its last event.",
}


@admin.register(models.Application)
class ApplicationAdmin(SecretAdmin):
    list_display = ("name", "app_id", "key", "enabled", "client_events", "created_at")
    list_editable = ("enabled",)
    search_fields = ("name", "app_id", "key")
    ordering = ("name",)
    actions = ("enable", "disable")
    inlines = (ChannelRuleInline, WebhookInline)

    class Media:
        css = {"all": ("fanfare/admin/credentials.css",)}  # noqa: RUF012  (Django reads the attribute of the class)
        js = ("fanfare/admin/credentials.js",)

    # -- what is shown ------------------------------------------------------------------------------------------------

    def get_fieldsets(self, request: HttpRequest, obj: models.Application | None = None) -> Any:
        settings = ("name", "enabled", "client_events", "subscription_counts", "allowed_origins", *limits.DURATIONS)
        if obj is None:
            credentials = {
                "fields": ("app_id", "key", "secret"),
                "description": "Generated. To move from another server, enter the ones that your clients have.",
            }
            return (None, {"fields": settings}), ("Credentials", credentials), self._limits()
        # The secret is enough to publish, so who may only look does not see it.
        secret = ("hidden_secret",) if super().has_change_permission(request, obj) else ()
        old_secret = ("old_secret",) if obj.previous_secret_works else ()
        credentials = {
            "fields": ("app_id", "key", *secret, *old_secret),
            "description": "Clients have the key; servers have the id, the key and the secret.",
        }
        return (
            (None, {"fields": (*settings, "source", "created_at", "updated_at")}),
            ("Credentials", credentials),
            self._limits(),
        )

    def _limits(self) -> tuple[str, dict[str, Any]]:
        return "Limits", {"fields": limits.NAMES, "description": "Empty: the default."}

    def get_readonly_fields(self, request: HttpRequest, obj: models.Application | None = None) -> tuple[str, ...]:
        return () if obj is None else ("app_id", "hidden_secret", "old_secret", "source", "created_at", "updated_at")

    def formfield_for_dbfield(
        self, db_field: Field[Any, Any], request: HttpRequest, **kwargs: Any
    ) -> forms.Field | None:
        if db_field.name == "allowed_origins":
            kwargs["widget"] = forms.Textarea({"class": "vLargeTextField", "rows": 4})
        if db_field.name not in limits.BOUNDS:
            return super().formfield_for_dbfield(db_field, request, **kwargs)
        least, most = limits.BOUNDS[db_field.name]
        default = limits.DEFAULTS[db_field.name] or ("off" if db_field.name in limits.DURATIONS else "unlimited")
        widget = forms.NumberInput({"class": "vBigIntegerField", "min": least, "max": most, "placeholder": default})
        return db_field.formfield(
            widget=widget,
            min_value=None,  # the model's validators know both bounds and say them
            help_text=f"{UNITS[db_field.name]} From {least:,} to {most:,}.",
        )

    @admin.display(description="managed in")
    def source(self, application: models.Application) -> str:
        return "FANFARE_APPS" if application.declared else "the admin"

    # -- who may do what ----------------------------------------------------------------------------------------------

    def has_change_permission(self, request: HttpRequest, obj: models.Application | None = None) -> bool:
        if obj is not None and obj.declared:
            return False  # the next start of a worker would undo the change
        return super().has_change_permission(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: models.Application | None = None) -> bool:
        if obj is not None and obj.declared:
            return False
        return super().has_delete_permission(request, obj)

    def get_changelist_form(self, request: HttpRequest, **kwargs: Any) -> type[ModelForm]:
        kwargs.setdefault("form", SwitchForm)
        return super().get_changelist_form(request, **kwargs)

    # -- the list's actions -------------------------------------------------------------------------------------------

    @admin.action(description="Enable selected applications", permissions=["change"])
    def enable(self, request: HttpRequest, queryset: QuerySet[models.Application]) -> None:
        self._switch(request, queryset, enabled=True)

    @admin.action(description="Disable selected applications (closes their connections)", permissions=["change"])
    def disable(self, request: HttpRequest, queryset: QuerySet[models.Application]) -> None:
        self._switch(request, queryset, enabled=False)

    def _switch(self, request: HttpRequest, queryset: QuerySet[models.Application], *, enabled: bool) -> None:
        word = "enabled" if enabled else "disabled"
        declared = queryset.filter(declared=True).count()
        changing = list(queryset.filter(declared=False, enabled=not enabled))
        models.Application.objects.filter(pk__in=[application.pk for application in changing]).update(
            enabled=enabled, updated_at=timezone.now()
        )
        for application in changing:
            self.log_change(request, application, f"Was {word}.")
        self.message_user(request, f"{word.capitalize()}: {len(changing)}.", messages.SUCCESS)
        if declared:
            self.message_user(request, f"Managed in FANFARE_APPS, so left alone: {declared}.", messages.WARNING)
