"""Applications in the admin: the list with its switches, one application with its credentials, a new secret."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import Field, QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString

from apps.applications import limits, models, rotation

if TYPE_CHECKING:  # Django's classes take a type parameter only in their stubs
    ModelForm = forms.ModelForm[models.Application]
    ModelAdmin = admin.ModelAdmin[models.Application]
else:
    ModelForm = forms.ModelForm
    ModelAdmin = admin.ModelAdmin

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
    "client_events_per_second": "Of one connection, on average.",
    "client_events_burst": "Of one connection, at once.",
}


class SwitchForm(ModelForm):
    """A row of the list, where `enabled` can be switched."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.instance.declared and "enabled" in self.fields:
            self.fields["enabled"].disabled = True


@admin.register(models.Application)
class ApplicationAdmin(ModelAdmin):
    list_display = ("name", "app_id", "key", "enabled", "client_events", "created_at")
    list_editable = ("enabled",)
    search_fields = ("name", "app_id", "key")
    ordering = ("name",)
    actions = ("enable", "disable")

    class Media:
        css = {"all": ("applications/credentials.css",)}  # noqa: RUF012  (Django reads the attribute of the class)
        js = ("applications/credentials.js",)

    # -- what is shown ------------------------------------------------------------------------------------------------

    def get_fieldsets(self, request: HttpRequest, obj: models.Application | None = None) -> Any:
        settings = ("name", "enabled", "client_events", "allowed_origins")
        if obj is None:
            credentials = {
                "fields": ("app_id", "key", "secret"),
                "description": "Generated. To move from another server, enter the ones that your clients have.",
            }
            return (None, {"fields": settings}), ("Credentials", credentials), self._limits()
        # The secret is enough to publish, so who may only look does not see it.
        secret = ("hidden_secret",) if super().has_change_permission(request, obj) else ()
        credentials = {
            "fields": ("app_id", "key", *secret),
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
        return () if obj is None else ("app_id", "hidden_secret", "source", "created_at", "updated_at")

    def formfield_for_dbfield(
        self, db_field: Field[Any, Any], request: HttpRequest, **kwargs: Any
    ) -> forms.Field | None:
        if db_field.name == "allowed_origins":
            kwargs["widget"] = forms.Textarea({"class": "vLargeTextField", "rows": 4})
        if db_field.name not in limits.NAMES:
            return super().formfield_for_dbfield(db_field, request, **kwargs)
        least, most = limits.BOUNDS[db_field.name]
        default = getattr(limits.DEFAULTS, db_field.name)
        widget = forms.NumberInput(
            {"class": "vBigIntegerField", "min": least, "max": most, "placeholder": default or "unlimited"}
        )
        return db_field.formfield(
            widget=widget,
            min_value=None,  # the model's validators know both bounds and say them
            help_text=f"{UNITS[db_field.name]} From {least:,} to {most:,}.",
        )

    @admin.display(description="secret")
    def hidden_secret(self, application: models.Application) -> SafeString:
        return format_html(
            '<details class="secret"><summary>Show</summary><code data-copy>{}</code></details>', application.secret
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

    # -- the secret ---------------------------------------------------------------------------------------------------

    def get_urls(self) -> list[URLPattern]:
        rotate = path(
            "<path:object_id>/rotate-secret/",
            self.admin_site.admin_view(self.rotate_secret),
            name="applications_application_rotate_secret",
        )
        return [rotate, *super().get_urls()]

    def rotate_secret(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """GET asks, POST does."""
        application = self.get_object(request, object_id)
        if application is None:
            raise Http404
        if not self.has_change_permission(request, application):
            raise PermissionDenied
        page = reverse("admin:applications_application_change", args=(application.pk,))
        if request.method == "POST":
            rotation.rotate_secret(application)
            self.log_change(request, application, "Rotated the secret.")
            self.message_user(request, f"{application} has a new secret.", messages.SUCCESS)
            return HttpResponseRedirect(page)
        context = {
            **self.admin_site.each_context(request),
            "title": "Rotate the secret",
            "opts": self.opts,
            "original": application,
            "page": page,
        }
        return TemplateResponse(request, "admin/applications/application/rotate_secret.html", context)
