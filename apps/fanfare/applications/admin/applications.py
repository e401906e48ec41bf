"""Applications in the admin: the list, the page of one application, and the pages that ask before they change it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from django import forms
from django.contrib import admin, messages
from django.contrib.admin import helpers
from django.core.exceptions import PermissionDenied
from django.db.models import Field, QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString

from fanfare import conf
from fanfare.applications import limits, models
from fanfare.applications.admin.inlines import ChannelRuleInline, WebhookInline

if TYPE_CHECKING:  # Django's classes take a type parameter only in their stubs
    ModelAdmin = admin.ModelAdmin[models.Application]
else:
    ModelAdmin = admin.ModelAdmin

UNITS = {
    "max_connections": "In the whole deployment.",
    "max_event_bytes": "Bytes of an event's data.",
    "max_channels_per_event": "Channels of one publish call.",
    "max_batch_events": "Events of one batch call.",
    "max_channel_name": "Characters.",
    "max_event_name": "Characters.",
    "max_presence_members": "Distinct users of one presence channel.",
    "max_member_bytes": "Bytes of a presence member's data.",
    "max_user_id": "Characters.",
    "max_watchlist": "Users that one client watches.",
    "max_events_per_second": "Published over HTTP, in the whole deployment.",
    "client_events_per_second": "Of one connection, on average.",
    "client_events_burst": "Of one connection, at once.",
    "authorization_timeout": (
        "Seconds in which a client must sign in or subscribe to a private or presence channel; otherwise it is "
        "disconnected."
    ),
    "cache_seconds": "Seconds for which a cache channel holds its last event.",
}


@admin.register(models.Application)
class ApplicationAdmin(ModelAdmin):
    """On the confirmation pages, GET asks and POST makes the change."""

    list_display = ("name", "app_id", "key", "enabled", "client_events", "created_at")
    search_fields = ("name", "app_id", "key")
    ordering = ("name",)
    actions = ("enable_selected", "disable_selected")
    inlines = (ChannelRuleInline, WebhookInline)
    empty_list = "Add an application: clients connect with its key, and servers publish with its id, key and secret."

    class Media:
        css = {"all": ("fanfare/admin/credentials.css",)}  # noqa: RUF012  (Django reads the attribute of the class)
        js = ("fanfare/admin/credentials.js",)

    # -- the page of one application -----------------------------------------------------------------------------------

    def get_fieldsets(self, request: HttpRequest, obj: models.Application | None = None) -> Any:
        settings = ("name", "enabled", "client_events", "subscription_counts", "allowed_origins", *limits.DURATIONS)
        if obj is None:
            credentials = {
                "fields": ("app_id", "key", "secret"),
                "description": "These values are generated. To move from another server, enter its credentials.",
            }
            return (None, {"fields": settings}), ("Credentials", credentials), self._limits()
        # The secret is enough to publish, so a user with the view permission alone does not see it.
        secret = ("hidden_secret",) if super().has_change_permission(request, obj) else ()
        old_secret = ("old_secret",) if obj.previous_secret_works else ()
        credentials = {
            "fields": ("app_id", "key", *secret, *old_secret),
            "description": "Clients need the key; servers need the id, the key and the secret.",
        }
        return (
            ("Credentials", credentials),
            ("Settings", {"fields": (*settings, "source", "created_at", "updated_at")}),
            self._limits(obj),
        )

    def _limits(self, obj: models.Application | None = None) -> tuple[str, dict[str, Any]]:
        own = [name for name in limits.NAMES if getattr(obj, name, None) is not None]
        return "Limits", {
            "fields": limits.NAMES,
            "description": "Leave a field empty to use the default, which it shows in grey.",
            "classes": () if own else ("collapse",),  # Django opens it if a value is wrong
        }

    def get_readonly_fields(self, request: HttpRequest, obj: models.Application | None = None) -> tuple[str, ...]:
        if obj is None:
            return ()
        return ("app_id", "enabled", "hidden_secret", "old_secret", "source", "created_at", "updated_at")

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
            min_value=None,  # the model's validators check both bounds
            help_text=f"{UNITS[db_field.name]} From {least:,} to {most:,}.",
        )

    @admin.display(description="managed in")
    def source(self, application: models.Application) -> str:
        return "FANFARE_APPS" if application.declared else "the admin"

    @admin.display(description="secret")
    def hidden_secret(self, application: models.Application) -> SafeString:
        return format_html(
            '<details class="secret"><summary>Show</summary><code data-copy>{}</code></details>', application.secret
        )

    @admin.display(description="old secret")
    def old_secret(self, application: models.Application) -> str:
        return f"Valid {_until(application)}."

    # -- permissions ---------------------------------------------------------------------------------------------------

    def has_change_permission(self, request: HttpRequest, obj: models.Application | None = None) -> bool:
        if obj is not None and obj.declared:
            return False  # the next start of a worker would undo the change
        return super().has_change_permission(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: models.Application | None = None) -> bool:
        if obj is not None and obj.declared:
            return False
        return super().has_delete_permission(request, obj)

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest) -> bool:
        """Django lets the list be filtered by any field. `?secret__startswith=` would tell a user with the view
        permission alone the secret, one character after the other."""
        is_secret = lookup.partition("__")[0] in ("secret", "previous_secret")
        return not is_secret and super().lookup_allowed(lookup, value, request)

    # -- confirmation pages --------------------------------------------------------------------------------------------

    def get_urls(self) -> list[URLPattern]:
        def page(slug: str, view: Callable[[HttpRequest, str], HttpResponse]) -> URLPattern:
            name = f"fanfare_application_{slug.replace('-', '_')}"
            return path(f"<path:object_id>/{slug}/", self.admin_site.admin_view(view), name=name)

        return [
            page("rotate-secret", self.rotate_secret),
            page("end-old-secret", self.end_old_secret),
            page("disable", self.disable),
            page("enable", self.enable),
            *super().get_urls(),
        ]

    def rotate_secret(self, request: HttpRequest, object_id: str) -> HttpResponse:
        application = self._changeable(request, object_id)
        if request.method == "POST":
            application.rotate_secret(end_old="end_old" in request.POST)
            old = f"valid {_until(application)}" if application.previous_secret_works else "no longer valid"
            self.log_change(request, application, f"Rotated the secret. The old one is {old}.")
            return self._done(request, application, f"{application} has a new secret. The old one is {old}.")
        now = timezone.now()
        until = now + dt.timedelta(seconds=conf.settings.SECRET_GRACE_SECONDS)
        return self._ask(request, application, "rotate_secret", "Rotate the secret", now=now, until=until)

    def end_old_secret(self, request: HttpRequest, object_id: str) -> HttpResponse:
        application = self._changeable(request, object_id)
        if not application.previous_secret_works:
            return self._done(request, application, f"{application} has no valid old secret.")
        if request.method == "POST":
            application.end_previous_secret()
            self.log_change(request, application, "Ended the old secret.")
            return self._done(request, application, f"The old secret of {application} is no longer valid.")
        return self._ask(request, application, "end_old_secret", "End the old secret", works=_until(application))

    def disable(self, request: HttpRequest, object_id: str) -> HttpResponse:
        application = self._changeable(request, object_id)
        if request.method == "POST":
            self._switch(request, models.Application.objects.filter(pk=application.pk), enabled=False)
            return HttpResponseRedirect(self._page(application))
        return self._ask(request, application, "disable", "Disable the application", applications=[application])

    def enable(self, request: HttpRequest, object_id: str) -> HttpResponse:
        application = self._changeable(request, object_id)
        if request.method == "POST":
            self._switch(request, models.Application.objects.filter(pk=application.pk), enabled=True)
            return HttpResponseRedirect(self._page(application))
        return self._ask(request, application, "enable", "Enable the application")

    @admin.action(description="Enable selected applications", permissions=["change"])
    def enable_selected(self, request: HttpRequest, queryset: QuerySet[models.Application]) -> None:
        self._switch(request, queryset, enabled=True)

    @admin.action(description="Disable selected applications", permissions=["change"])
    def disable_selected(self, request: HttpRequest, queryset: QuerySet[models.Application]) -> HttpResponse | None:
        if "confirmed" in request.POST:
            self._switch(request, queryset, enabled=False)
            return None
        return self._render(
            request,
            "disable",
            "Disable applications",
            applications=queryset,
            action="disable_selected",
            selected=helpers.ACTION_CHECKBOX_NAME,
            page=self._list_page(),
        )

    def _switch(self, request: HttpRequest, queryset: QuerySet[models.Application], *, enabled: bool) -> None:
        word = "enabled" if enabled else "disabled"
        declared = queryset.filter(declared=True).count()
        changing = list(queryset.filter(declared=False, enabled=not enabled))
        models.Application.objects.filter(pk__in=[application.pk for application in changing]).update(
            enabled=enabled, updated_at=timezone.now()
        )
        for application in changing:
            self.log_change(request, application, f"Was {word}.")
        names = ", ".join(str(application) for application in changing) or "none"
        self.message_user(request, f"{word.capitalize()}: {names}.", messages.SUCCESS)
        if declared:
            self.message_user(request, f"Managed in FANFARE_APPS, not changed: {declared}.", messages.WARNING)

    def _changeable(self, request: HttpRequest, object_id: str) -> models.Application:
        application = self.get_object(request, object_id)
        if application is None:
            raise Http404
        if not self.has_change_permission(request, application):
            raise PermissionDenied
        return application

    def _ask(
        self, request: HttpRequest, application: models.Application, template: str, title: str, **context: object
    ) -> HttpResponse:
        return self._render(request, template, title, original=application, page=self._page(application), **context)

    def _render(self, request: HttpRequest, template: str, title: str, **context: object) -> HttpResponse:
        request.current_app = self.admin_site.name  # `{% url %}` reads it
        context |= {**self.admin_site.each_context(request), "title": title, "opts": self.opts}
        context["grace"] = conf.settings.DISABLED_GRACE
        return TemplateResponse(request, f"admin/fanfare/application/{template}.html", context)

    def _done(self, request: HttpRequest, application: models.Application, sentence: str) -> HttpResponse:
        self.message_user(request, sentence, messages.SUCCESS)
        return HttpResponseRedirect(self._page(application))

    def _page(self, application: models.Application) -> str:
        name = self.admin_site.name
        return reverse("admin:fanfare_application_change", args=(application.pk,), current_app=name)

    def _list_page(self) -> str:
        return reverse("admin:fanfare_application_changelist", current_app=self.admin_site.name)


def _until(application: models.Application) -> str:
    until = application.previous_secret_until
    if until is not None:
        shown = until if timezone.is_naive(until) else timezone.localtime(until)  # naive with USE_TZ = False
        return f"until {shown:%Y-%m-%d %H:%M %Z}".rstrip()
    return "for as long as FANFARE_APPS names it" if application.declared else "until it is ended"
