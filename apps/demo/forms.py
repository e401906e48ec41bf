from __future__ import annotations

from django import forms

from apps.demo import models


class MessageForm(forms.Form):
    text = forms.CharField(max_length=models.Message.MAX_CHARACTERS)
