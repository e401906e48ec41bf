"""The secret of an application on its page, and the pages that replace it and end the old one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString

from fanfare.applications import models, rotation

if TYPE_CHECKING:  # Django's classes take a type parameter only in their stubs
    ModelAdmin = admin.ModelAdmin[models.Application]
else:
    ModelAdmin = admin.ModelAdmin


class SecretAdmin(ModelAdmin):
    """GET asks, POST does."""

    def get_urls(self) -> list[URLPattern]:
        def page(slug: str, view: Callable[[HttpRequest, str], HttpResponse]) -> URLPattern:
            name = f"fanfare_application_{slug.replace('-', '_')}"
            return path(f"<path:object_id>/{slug}/", self.admin_site.admin_view(view), name=name)

        return [
            page("rotate-secret", self.rotate_secret),
            page("end-old-secret", self.end_old_secret),
            *super().get_urls(),
        ]

    @admin.display(description="secret")
    def hidden_secret(self, application: models.Application) -> SafeString:
        return format_html(
            '<details class="secret"><summary>Show</summary><code data-copy>{}</code></details>', application.secret
        )

    @admin.display(description="old secret")
    def old_secret(self, application: models.Application) -> str:
        return f"Works {_until(application)}."

    def rotate_secret(self, request: HttpRequest, object_id: str) -> HttpResponse:
        application = self._changeable(request, object_id)
        if request.method == "POST":
            rotation.rotate_secret(application, end_old="end_old" in request.POST)
            old = _until(application) if application.previous_secret_works else "no more"
            self.log_change(request, application, f"Rotated the secret. The old one works {old}.")
            return self._done(request, application, f"{application} has a new secret. The old one works {old}.")
        now = timezone.now()
        return self._ask(
            request, application, "rotate_secret", "Rotate the secret", now=now, until=now + rotation.grace()
        )

    def end_old_secret(self, request: HttpRequest, object_id: str) -> HttpResponse:
        application = self._changeable(request, object_id)
        if not application.previous_secret_works:
            return self._done(request, application, f"{application} has no old secret that works.")
        if request.method == "POST":
            rotation.end_previous_secret(application)
            self.log_change(request, application, "Ended the old secret.")
            return self._done(request, application, f"The old secret of {application} works no more.")
        return self._ask(request, application, "end_old_secret", "End the old secret", works=_until(application))

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
        context |= {
            **self.admin_site.each_context(request),
            "title": title,
            "opts": self.opts,
            "original": application,
            "page": _page(application),
        }
        return TemplateResponse(request, f"admin/fanfare/application/{template}.html", context)

    def _done(self, request: HttpRequest, application: models.Application, sentence: str) -> HttpResponse:
        self.message_user(request, sentence, messages.SUCCESS)
        return HttpResponseRedirect(_page(application))


def _page(application: models.Application) -> str:
    return reverse("admin:fanfare_application_change", args=(application.pk,))


def _until(application: models.Application) -> str:
    until = application.previous_secret_until
    if until is not None:
        return f"until {timezone.localtime(until):%Y-%m-%d %H:%M %Z}"
    return "for as long as FANFARE_APPS names it" if application.declared else "until somebody ends it"
