"""The webhooks of an application, on its page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django import forms
from django.contrib import admin
from django.db.models import Field
from django.http import HttpRequest

from fanfare.applications import models
from fanfare.applications.admin import inlines
from fanfare.applications.admin.forms import WebhookEndpointForm

if TYPE_CHECKING:
    StackedInline = admin.StackedInline[models.WebhookEndpoint, models.Application]
else:
    StackedInline = admin.StackedInline


class WebhookInline(inlines.FollowsDeclaration, StackedInline):
    model = models.WebhookEndpoint
    form = WebhookEndpointForm
    extra = 0

    def get_fields(self, request: HttpRequest, obj: models.Application | None = None) -> tuple[str, ...]:
        fields = ("enabled", "event_types", "channel_prefix", "batching")
        # The headers and the query of the URL may hold tokens: users who may only view do not see them.
        if super().has_change_permission(request, obj):
            return ("url", *fields, "headers")
        return ("masked_url", *fields)

    def get_readonly_fields(self, request: HttpRequest, obj: models.Application | None = None) -> tuple[str, ...]:
        return () if super().has_change_permission(request, obj) else ("masked_url",)

    def formfield_for_dbfield(
        self, db_field: Field[Any, Any], request: HttpRequest, **kwargs: Any
    ) -> forms.Field | None:
        if db_field.name == "url":
            kwargs["widget"] = forms.TextInput({"class": "vURLField", "inputmode": "url"})
        return super().formfield_for_dbfield(db_field, request, **kwargs)
