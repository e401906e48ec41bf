"""The text of FANFARE_APPS: applications that are declared in the environment, as for a container.

It takes one of two forms:

    42:a-key:a-secret, 43:another-key:another-secret:Its name
    [{"id": "42", "key": "a-key", "secret": "a-secret", "name": "Shop", "client_events": true, "max_connections": 500,
      "webhooks": ["https://example.com/hook", {"url": "https://example.org/", "events": ["cache_miss"]}],
      "rules": [{"pattern": "orders-*", "history_size": 1000, "history_seconds": 3600}]}]
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fanfare.applications import credentials, errors, limits, models

REQUIRED = ("id", "key", "secret")
SWITCHES = ("enabled", "client_events", "subscription_counts")
NUMBERS = (*limits.DURATIONS, *limits.NAMES)
FIELDS = (*REQUIRED, "previous_secret", "name", *SWITCHES, "allowed_origins", *NUMBERS, "webhooks", "rules")

# The fields of a webhook, and the columns that are named differently.
WEBHOOK_FIELDS = ("url", "events", "channel_prefix", "headers", "batching", "enabled")
_WEBHOOK_COLUMNS = {"events": "event_types"}
_WEBHOOK_TEXTS = ("url", "channel_prefix")
_WEBHOOK_SWITCHES = ("batching", "enabled")

RULE_FIELDS = ("pattern", *limits.RULE_BOUNDS, "client_events")


@dataclass(frozen=True)
class Declaration:
    """One application, its webhooks and its channel rules as they are declared; the rows are not saved."""

    application: models.Application
    webhooks: tuple[models.WebhookEndpoint, ...] = ()
    rules: tuple[models.ChannelRule, ...] = ()


def parse(text: str) -> list[Declaration]:
    """Raises DeclarationError, whose message names the entry and the field, and shows no secret."""
    text = text.strip()
    if not text:
        return []
    entries = _json_entries(text) if text[0] in "[{" else _compact_entries(text)
    declarations = [_declaration(number, entry) for number, entry in enumerate(entries, start=1)]
    for column in ("app_id", "key", "name"):
        numbers: dict[str, int] = {}
        for number, declaration in enumerate(declarations, start=1):
            first = numbers.setdefault(getattr(declaration.application, column), number)
            if first != number:
                field = column.removeprefix("app_")
                raise errors.DeclarationError(f"FANFARE_APPS: entries {first} and {number} have the same {field}.")
    return declarations


def _json_entries(text: str) -> list[dict[str, Any]]:
    try:
        value = json.loads(text)
    except ValueError as error:
        # Not `from error`: it carries the whole text, the secrets in it too.
        raise errors.DeclarationError(f"FANFARE_APPS is not valid JSON: {error}.") from None
    entries = value if isinstance(value, list) else [value]
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, dict):
            raise errors.DeclarationError(f"FANFARE_APPS: entry {number} is not a JSON object.")
    return entries


def _compact_entries(text: str) -> list[dict[str, Any]]:
    entries = []
    for number, item in enumerate(filter(None, map(str.strip, text.split(","))), start=1):
        parts = [part.strip() for part in item.split(":", 3)]
        if len(parts) < len(REQUIRED):
            raise errors.DeclarationError(f"FANFARE_APPS: entry {number} is not id:key:secret or id:key:secret:name.")
        entries.append(dict(zip((*REQUIRED, "name"), parts, strict=False)))
    return entries


def _declaration(number: int, entry: dict[str, Any]) -> Declaration:
    values = dict(entry)
    app_id = values.get("id")
    if isinstance(app_id, int) and not isinstance(app_id, bool):
        app_id = values["id"] = str(app_id)
    # Only what certainly is an id is shown: who mixes the fields up may have put the secret here.
    is_id = isinstance(app_id, str) and credentials.ID.match(app_id)
    place = f"FANFARE_APPS: entry {number}" + (f" (id {app_id})" if is_id else "")
    _check_fields(place, values, known=FIELDS, required=REQUIRED, expected=_expected_instead)

    origins = values.pop("allowed_origins", [])
    webhooks = values.pop("webhooks", [])
    rules = values.pop("rules", [])
    application = models.Application(
        app_id=values.pop("id"),
        name=values.pop("name", "") or f"Application {app_id}",
        allowed_origins=origins if isinstance(origins, str) else "\n".join(origins),
        declared=True,
        **values,
    )
    for column, problem in application.problems().items():
        raise errors.DeclarationError(f"{place}: {column.removeprefix('app_')}: {problem}")
    return Declaration(
        application,
        tuple(_webhook(f"{place}: webhook {nth}", webhook) for nth, webhook in enumerate(webhooks, start=1)),
        _rules(place, rules),
    )


def _webhook(place: str, entry: str | dict[str, Any]) -> models.WebhookEndpoint:
    values = {"url": entry} if isinstance(entry, str) else dict(entry)
    _check_fields(place, values, known=WEBHOOK_FIELDS, required=("url",), expected=_expected_of_webhook)
    endpoint = models.WebhookEndpoint(**{_WEBHOOK_COLUMNS.get(field, field): value for field, value in values.items()})
    fields = {column: field for field, column in _WEBHOOK_COLUMNS.items()}
    for column, problem in endpoint.problems().items():
        raise errors.DeclarationError(f"{place}: {fields.get(column, column)}: {problem}")
    return endpoint


def _rules(place: str, entries: Sequence[dict[str, Any]]) -> tuple[models.ChannelRule, ...]:
    rules: dict[str, models.ChannelRule] = {}
    for number, values in enumerate(entries, start=1):
        here = f"{place}: rule {number}"
        _check_fields(here, values, known=RULE_FIELDS, required=RULE_FIELDS[:3], expected=_expected_of_rule)
        rule = models.ChannelRule(position=number, **values)
        for column, problem in rule.problems().items():
            raise errors.DeclarationError(f"{here}: {column}: {problem}")
        first = rules.setdefault(rule.pattern, rule)
        if first is not rule:
            raise errors.DeclarationError(f"{place}: rules {first.position} and {number} have the same pattern.")
    return tuple(rules.values())


def _check_fields(
    place: str,
    values: dict[str, Any],
    *,
    known: Sequence[str],
    required: Sequence[str],
    expected: Callable[[str, Any], str | None],
) -> None:
    for field in values:
        if field not in known:
            raise errors.DeclarationError(f"{place}: there is no field {field!r}; the fields are {', '.join(known)}.")
    for field in required:
        if field not in values:
            raise errors.DeclarationError(f"{place}: {field} is missing.")
    for field, value in values.items():
        wanted = expected(field, value)
        if wanted:
            raise errors.DeclarationError(f"{place}: {field} must be {wanted}.")


def _expected_instead(field: str, value: Any) -> str | None:
    """What the value should have been, or None if its type is right."""
    if field in SWITCHES:
        return None if isinstance(value, bool) else "true or false"
    if field in NUMBERS:
        return None if value is None or type(value) is int else "a whole number, or null for the default"
    if field == "allowed_origins" and isinstance(value, list):
        return None if all(isinstance(entry, str) for entry in value) else "a list of texts"
    if field == "webhooks":
        is_right = isinstance(value, list) and all(isinstance(entry, (str, dict)) for entry in value)
        return None if is_right else "a list of URLs, or of objects with a url"
    if field == "rules":
        is_right = isinstance(value, list) and all(isinstance(entry, dict) for entry in value)
        return None if is_right else "a list of objects with a pattern"
    return None if isinstance(value, str) else "a text"


def _expected_of_webhook(field: str, value: Any) -> str | None:
    """As `_expected_instead`. What `events` and `headers` may hold, their columns know."""
    if field in _WEBHOOK_SWITCHES:
        return None if isinstance(value, bool) else "true or false"
    if field in _WEBHOOK_TEXTS:
        return None if isinstance(value, str) else "a text"
    return None


def _expected_of_rule(field: str, value: Any) -> str | None:
    """As `_expected_instead`."""
    if field in limits.RULE_BOUNDS:
        return None if type(value) is int else "a whole number"
    if field == "client_events":
        return None if isinstance(value, bool) else "true or false"
    return None if isinstance(value, str) else "a text"
