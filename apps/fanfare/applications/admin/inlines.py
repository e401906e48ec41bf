"""Channel rules and webhooks of an application, on its page. Those of a declared application are read-only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django import forms
from django.contrib import admin
from django.core.exceptions import ValidationError
from django.db.models import Field, Max
from django.http import HttpRequest

from fanfare.applications import limits, models, registry

if TYPE_CHECKING:  # Django's classes take a type parameter only in their stubs
    InlineModelAdmin = admin.options.InlineModelAdmin[Any, models.Application]
    RuleInline = admin.StackedInline[models.ChannelRule, models.Application]
    EndpointInline = admin.StackedInline[models.WebhookEndpoint, models.Application]
    EndpointForm = forms.ModelForm[models.WebhookEndpoint]
    RuleFormSet = forms.BaseInlineFormSet[models.ChannelRule, models.Application, forms.ModelForm[models.ChannelRule]]
else:
    InlineModelAdmin = object
    RuleInline = EndpointInline = admin.StackedInline
    EndpointForm = forms.ModelForm


class FollowsDeclaration(InlineModelAdmin):
    """Read-only on the page of a declared application."""

    def has_add_permission(self, request: HttpRequest, obj: models.Application | None = None) -> bool:
        return not _is_declared(obj) and super().has_add_permission(request, obj)

    def has_change_permission(self, request: HttpRequest, obj: models.Application | None = None) -> bool:
        return not _is_declared(obj) and super().has_change_permission(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: models.Application | None = None) -> bool:
        return not _is_declared(obj) and super().has_delete_permission(request, obj)


def _is_declared(application: models.Application | None) -> bool:
    return application is not None and application.declared


# -- channel rules -----------------------------------------------------------------------------------------------------


class ChannelRuleInline(FollowsDeclaration, RuleInline):
    model = models.ChannelRule
    extra = 0
    fields = (
        ("pattern", "position"),
        ("history_size", "history_seconds"),
        ("rewind_count", "rewind_seconds"),
        ("max_replay_entries", "max_replay_bytes"),
        ("client_events", "record_members"),
        ("stream_window_ms", "stream_cancel"),
    )

    def get_formset(
        self, request: HttpRequest, obj: models.Application | None = None, **kwargs: Any
    ) -> type[RuleFormSet]:
        """A new rule gets the position after the others by default."""
        formset = super().get_formset(request, obj, **kwargs)
        position = formset.form.base_fields.get("position")
        if obj is not None and position is not None:
            last = obj.rules.aggregate(last=Max("position"))["last"]
            position.initial = 1 if last is None else last + 1
        return formset

    def formfield_for_dbfield(
        self, db_field: Field[Any, Any], request: HttpRequest, **kwargs: Any
    ) -> forms.Field | None:
        if db_field.name == "pattern":
            kwargs["widget"] = forms.TextInput({"class": "vTextField", "spellcheck": "false", "autocapitalize": "off"})
        if db_field.name not in limits.RULE_BOUNDS:
            return super().formfield_for_dbfield(db_field, request, **kwargs)
        least, most = limits.RULE_BOUNDS[db_field.name]
        return db_field.formfield(
            widget=forms.NumberInput({"class": "vBigIntegerField", "min": least, "max": most}),
            min_value=None,  # the model's validators check both bounds
            help_text=f"{db_field.help_text} From {least:,} to {most:,}.",
        )


# -- webhooks ----------------------------------------------------------------------------------------------------------


class HeadersField(forms.CharField):
    """HTTP headers, one a line: `Name: value`. The value is a dict."""

    widget = forms.Textarea

    def prepare_value(self, value: Any) -> Any:
        return "\n".join(f"{name}: {text}" for name, text in value.items()) if isinstance(value, dict) else value

    def to_python(self, value: Any) -> Any:
        headers: dict[str, str] = {}
        for number, line in enumerate((super().to_python(value) or "").splitlines(), start=1):
            if not line.strip():
                continue
            name, colon, text = (part.strip() for part in line.partition(":"))
            if not colon:
                raise ValidationError(f"Line {number} is not a name, a colon and a value.")
            if name in headers:
                raise ValidationError(f"The header {name} appears twice.")
            headers[name] = text
        return headers

    def has_changed(self, initial: Any, data: Any) -> bool:
        try:
            return bool(self.to_python(data) != (initial or {}))
        except ValidationError:
            return True


class WebhookEndpointForm(EndpointForm):
    event_types = forms.MultipleChoiceField(
        choices=[(name, name) for name in registry.WEBHOOK_EVENTS],
        widget=forms.CheckboxSelectMultiple,
        required=False,
        help_text=models.WebhookEndpoint._meta.get_field("event_types").help_text,
    )
    headers = HeadersField(
        required=False,
        widget=forms.Textarea({"class": "vLargeTextField", "rows": 3, "spellcheck": "false"}),
        help_text=models.WebhookEndpoint._meta.get_field("headers").help_text,
    )


class WebhookInline(FollowsDeclaration, EndpointInline):
    model = models.WebhookEndpoint
    form = WebhookEndpointForm
    extra = 0

    readonly_fields = ("masked_url",)

    def get_fields(self, request: HttpRequest, obj: models.Application | None = None) -> tuple[str, ...]:
        fields = ("enabled", "event_types", "channel_prefix", "batching")
        # Headers, and the query of the URL, may contain a token: a user with the view permission alone does not see it.
        if super().has_change_permission(request, obj):
            return ("url", *fields, "headers")
        return ("url" if super().has_add_permission(request, obj) else "masked_url", *fields)

    def formfield_for_dbfield(
        self, db_field: Field[Any, Any], request: HttpRequest, **kwargs: Any
    ) -> forms.Field | None:
        if db_field.name == "url":
            kwargs["widget"] = forms.TextInput({"class": "vURLField", "inputmode": "url"})
        return super().formfield_for_dbfield(db_field, request, **kwargs)
