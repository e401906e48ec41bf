"""The console in the admin: its pages, and the audit log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed, JsonResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, get_script_prefix, path, reverse

from fanfare import conf
from fanfare.console import models, pages, permissions, tokens

if TYPE_CHECKING:  # Django's classes take a type parameter only in their stubs
    ConsoleBase = admin.ModelAdmin[models.Console]
    AuditBase = admin.ModelAdmin[models.AuditEntry]
else:
    ConsoleBase = AuditBase = admin.ModelAdmin


def live_url() -> str:
    """Where a page gets its live data: at FANFARE_PUBLIC_URL or at the page's own host."""
    base = conf.settings.PUBLIC_URL.rstrip("/") or get_script_prefix().rstrip("/") + conf.settings.URL_PREFIX.rstrip(
        "/"
    )
    return f"{base}/fanfare/console/"


@admin.register(models.Console)
class ConsoleAdmin(ConsoleBase):
    """Its list in the admin's index is the overview."""

    def get_urls(self) -> list[URLPattern]:
        # `admindocs` finds a view by its name, so each page has the same method and is passed to it by its URL.
        show = self.admin_site.admin_view(self.show)
        return [
            path("token/", self.admin_site.admin_view(self.renew), name="fanfare_console_token"),
            *(path(page.path, show, {"page": page}, name=page.url_name) for page in pages.PAGES),
        ]

    def show(self, request: HttpRequest, page: pages.Page) -> HttpResponse:
        access = permissions.of(request.user)
        if not access.may(page.permission):
            raise PermissionDenied
        request.current_app = self.admin_site.name  # `{% url %}` reads it
        context = {
            **self.admin_site.each_context(request),
            "title": page.title,
            "page": page,
            "groups": self._navigation(access),
            "opts": self.opts,
            "live_url": live_url(),
            "token": tokens.issue(access),
            "renew_url": self._url("fanfare_console_token"),
            "renew_s": tokens.RENEW_S,
            "rights": sorted(access.rights),
            **(page.context(request) if page.context is not None else {}),
        }
        return TemplateResponse(request, f"fanfare/console/{page.name}.html", context)

    def _navigation(self, access: permissions.Access) -> dict[str, list[tuple[pages.Page, str]]]:
        groups: dict[str, list[tuple[pages.Page, str]]] = {}
        for page in pages.PAGES:
            if access.may(page.permission):
                groups.setdefault(page.group, []).append((page, self._url(page.url_name)))
        return groups

    def _url(self, name: str) -> str:
        return reverse(f"admin:{name}", current_app=self.admin_site.name)

    def renew(self, request: HttpRequest) -> HttpResponse:
        """A new token, with the permissions that the user has now."""
        if request.method != "POST":
            return HttpResponseNotAllowed(["POST"])
        access = permissions.of(request.user)
        if not access.rights:
            raise PermissionDenied
        return JsonResponse({"token": tokens.issue(access)})

    # -- permissions ---------------------------------------------------------------------------------------------------

    def has_module_permission(self, request: HttpRequest) -> bool:
        return self.has_view_permission(request)

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return permissions.of(request.user).may(permissions.VIEW)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(models.AuditEntry)
class AuditEntryAdmin(AuditBase):
    """View only: the console writes the rows."""

    list_display = ("at", "user", "action", "app_id", "target")
    list_filter = ("action", "at")
    search_fields = ("user", "target", "app_id")
    search_help_text = "Search by user, target or application id"
    show_full_result_count = False
    date_hierarchy = "at"
    empty_list = "The actions of users in the console appear here, such as publishing or disconnecting a client."

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False
