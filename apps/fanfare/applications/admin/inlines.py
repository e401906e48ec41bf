"""What belongs to an application, on its page: FANFARE_APPS is the truth of a declared one's, too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.http import HttpRequest

from fanfare.applications import models

if TYPE_CHECKING:
    InlineModelAdmin = admin.options.InlineModelAdmin[Any, models.Application]
else:
    InlineModelAdmin = object


class FollowsDeclaration(InlineModelAdmin):
    """Nothing of a declared application can be changed here."""

    def has_add_permission(self, request: HttpRequest, obj: models.Application | None = None) -> bool:
        return not _is_declared(obj) and super().has_add_permission(request, obj)

    def has_change_permission(self, request: HttpRequest, obj: models.Application | None = None) -> bool:
        return not _is_declared(obj) and super().has_change_permission(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: models.Application | None = None) -> bool:
        return not _is_declared(obj) and super().has_delete_permission(request, obj)


def _is_declared(application: models.Application | None) -> bool:
    return application is not None and application.declared
