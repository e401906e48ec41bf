from __future__ import annotations

from django import forms

from demo import channels


class MessageForm(forms.Form):
    guest = forms.ChoiceField(choices=channels.GUESTS.items, widget=forms.HiddenInput)
    text = forms.CharField(max_length=500)
    id = forms.RegexField(r"\A[0-9a-f-]{1,64}\Z", required=False, widget=forms.HiddenInput)
