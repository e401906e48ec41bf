"""What a person fills in, where Django's own form of a model is not what that person would want."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django import forms
from django.core.exceptions import ValidationError

from fanfare.applications import models, registry

if TYPE_CHECKING:  # Django's classes take a type parameter only in their stubs
    ApplicationForm = forms.ModelForm[models.Application]
    EndpointForm = forms.ModelForm[models.WebhookEndpoint]
else:
    ApplicationForm = EndpointForm = forms.ModelForm


class SwitchForm(ApplicationForm):
    """A row of the list, where `enabled` can be switched."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.instance.declared and "enabled" in self.fields:
            self.fields["enabled"].disabled = True


class HeadersField(forms.CharField):
    """Headers as they look in a request, one a line; the value is an object of names and values."""

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
                raise ValidationError(f"The header {name} is there twice.")
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
