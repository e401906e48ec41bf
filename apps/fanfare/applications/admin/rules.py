"""The channel rules of an application, on its page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django import forms
from django.contrib import admin
from django.db.models import Field, Max
from django.http import HttpRequest

from fanfare.applications import limits, models
from fanfare.applications.admin import inlines

if TYPE_CHECKING:
    StackedInline = admin.StackedInline[models.ChannelRule, models.Application]
    InlineFormSet = forms.BaseInlineFormSet[models.ChannelRule, models.Application, forms.ModelForm[models.ChannelRule]]
else:
    StackedInline = admin.StackedInline


class ChannelRuleInline(inlines.FollowsDeclaration, StackedInline):
    model = models.ChannelRule
    extra = 0
    fields = (
        ("pattern", "position"),
        ("history_size", "history_seconds"),
        ("rewind_count", "rewind_seconds"),
        ("max_replay_entries", "max_replay_bytes"),
        "client_events",
    )

    def get_formset(
        self, request: HttpRequest, obj: models.Application | None = None, **kwargs: Any
    ) -> type[InlineFormSet]:
        """A rule that is added comes after the others unless the person says otherwise."""
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
            min_value=None,  # the model's validators know both bounds and say them
            help_text=f"{db_field.help_text} From {least:,} to {most:,}.",
        )
