"""Webhook endpoints of an application."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.core.exceptions import ValidationError
from django.db import models

from fanfare import conf
from fanfare.applications import endpoints, limits
from fanfare.applications.models import announced
from fanfare.applications.models.application import Application


def validate_url(url: str) -> None:
    fault = endpoints.url_fault(url, allow_private=conf.settings.WEBHOOKS_ALLOW_PRIVATE)
    if fault:
        raise ValidationError(fault)


def validate_event_types(value: Any) -> None:
    fault = endpoints.event_types_fault(value)
    if fault:
        raise ValidationError(fault)


def validate_channel_prefix(prefix: str) -> None:
    fault = endpoints.channel_prefix_fault(prefix)
    if fault:
        raise ValidationError(fault)


def validate_headers(value: Any) -> None:
    fault = endpoints.headers_fault(value)
    if fault:
        raise ValidationError(fault)


class WebhookEndpointQuerySet(announced.AnnouncedQuerySet["WebhookEndpoint"]):
    pass


class WebhookEndpoint(announced.Announced):
    """A URL that receives events of an application's channels, with filters."""

    APP_ID = "application__app_id"

    application = models.ForeignKey(Application, models.CASCADE, related_name="webhooks")
    url = models.CharField(
        "URL",
        max_length=endpoints.MOST_URL,
        validators=[validate_url],
        help_text="http or https. Every request is signed with the application's secret.",
    )
    enabled = models.BooleanField(
        default=True,
        help_text="A disabled webhook gets no events, and none later for the time in which it was disabled.",
    )
    event_types = models.JSONField(
        default=list, blank=True, validators=[validate_event_types], help_text="None chosen: all of them."
    )
    channel_prefix = models.CharField(
        max_length=limits.BOUNDS["max_channel_name"].most,
        blank=True,
        default="",
        validators=[validate_channel_prefix],
        help_text="Only channels whose name starts so: presence- or private-orders. Empty: all.",
    )
    headers = models.JSONField(
        default=dict,
        blank=True,
        validators=[validate_headers],
        help_text="Sent with every request, one a line: Authorization: Bearer abc.",
    )
    batching = models.BooleanField(
        default=False, help_text="Several events in one request. Otherwise every request has exactly one."
    )
    created_at = models.DateTimeField("created", auto_now_add=True)
    updated_at = models.DateTimeField("updated", auto_now=True)

    objects = WebhookEndpointQuerySet.as_manager()

    class Meta:
        ordering = ("pk",)
        verbose_name = "webhook"

    def __str__(self) -> str:
        return self.masked_url

    @property
    @admin.display(description="URL")
    def masked_url(self) -> str:
        """The URL for lists, logs and users with the view permission only: values of its query may be secrets."""
        return endpoints.masked(self.url)

    @property
    def announced_app_id(self) -> str:
        return self.application.app_id
