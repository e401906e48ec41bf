"""`manage.py fanfare history` of a channel without kept events."""

from __future__ import annotations

from io import StringIO

import pytest
from django.core.management import call_command

from fanfare.applications import registry, rules
from fanfare.integration import history, target

SHOP = registry.Application("1", "key", "secret", rules=rules.Rules((rules.Rule("orders", 10, 60),)))


@pytest.mark.parametrize(("channel", "sentence"), [("orders", "No event is kept."), ("news", "Add a rule")])
def test_command_says_whether_a_rule_is_missing(monkeypatch: pytest.MonkeyPatch, channel: str, sentence: str) -> None:
    monkeypatch.setattr(history, "events", lambda *_, **__: [])
    output = StringIO()
    with target.standing_in(SHOP):
        call_command("fanfare", "history", channel, stdout=output)
    assert sentence in output.getvalue()
