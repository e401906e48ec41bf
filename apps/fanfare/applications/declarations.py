"""FANFARE_APPS: applications declared in the environment, as for a container.

`parse` reads the text, `sync` writes the applications to the database when a worker starts. The declaration is the
source of truth for the applications that it contains, with their webhooks and channel rules. An application that is
removed from it is disabled, never deleted, and can be edited in the admin from then on.

The text has one of two forms:

    42:a-key:a-secret, 43:another-key:another-secret:Its name
    [{"id": "42", "key": "a-key", "secret": "a-secret", "name": "Shop", "client_events": true, "max_connections": 500,
      "webhooks": ["https://example.com/hook", {"url": "https://example.org/", "events": ["cache_miss"]}],
      "rules": [{"pattern": "orders-*", "history_size": 1000, "history_seconds": 3600}]}]
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from django.core import checks
from django.db import router, transaction

from fanfare import conf
from fanfare.applications import credentials, errors, limits, models

REQUIRED = ("id", "key", "secret")
SWITCHES = ("enabled", "client_events", "subscription_counts")
NUMBERS = (*limits.DURATIONS, *limits.NAMES)
FIELDS = (*REQUIRED, "previous_secret", "name", *SWITCHES, "allowed_origins", *NUMBERS, "webhooks", "rules")

# The fields of a webhook, and the columns that are named differently.
WEBHOOK_FIELDS = ("url", "events", "channel_prefix", "headers", "batching", "enabled")
_RENAMED_WEBHOOK_FIELDS = {"events": "event_types"}
_WEBHOOK_TEXTS = ("url", "channel_prefix")
_WEBHOOK_SWITCHES = ("batching", "enabled")

RULE_SWITCHES = ("client_events", "stream_cancel", "record_members")
RULE_FIELDS = ("pattern", *limits.RULE_BOUNDS, *RULE_SWITCHES)

# The columns that `sync` compares and writes.
_UNIQUE = ("key", "name")
_COLUMNS = (
    *("app_id", "key", "secret", "previous_secret", "previous_secret_until", "name", "allowed_origins"),
    *SWITCHES,
    *limits.BOUNDS,
)
_WEBHOOK_COLUMNS = ("url", "event_types", "channel_prefix", "headers", "batching", "enabled")
_RULE_COLUMNS = ("position", *RULE_FIELDS)

Part = TypeVar("Part", models.WebhookEndpoint, models.ChannelRule)


@dataclass(frozen=True)
class Declaration:
    """One declared application with its webhooks and channel rules, as rows that are not saved."""

    application: models.Application
    webhooks: tuple[models.WebhookEndpoint, ...] = ()
    rules: tuple[models.ChannelRule, ...] = ()


def parse(text: str) -> list[Declaration]:
    """Raises DeclarationError; its message names the entry and the field and contains no secret."""
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
        # Not `from error`: the JSON error contains the whole text, with its secrets.
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
    # The message shows only a valid id: in an entry with mixed-up fields this may be the secret.
    is_id = isinstance(app_id, str) and credentials.ID.match(app_id)
    place = f"FANFARE_APPS: entry {number}" + (f" (id {app_id})" if is_id else "")
    _check_fields(place, values, known=FIELDS, required=REQUIRED, expected=_expected)

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
    endpoint = models.WebhookEndpoint(
        **{_RENAMED_WEBHOOK_FIELDS.get(field, field): value for field, value in values.items()}
    )
    fields = {column: field for field, column in _RENAMED_WEBHOOK_FIELDS.items()}
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


def _expected(field: str, value: Any) -> str | None:
    """The expected type, or None if the value has it."""
    if field in SWITCHES:
        return None if isinstance(value, bool) else "true or false"
    if field in NUMBERS:
        return None if value is None or type(value) is int else "a whole number, or null for the default"
    if field == "allowed_origins" and isinstance(value, list):
        return None if all(isinstance(entry, str) for entry in value) else "a list of strings"
    if field == "webhooks":
        is_right = isinstance(value, list) and all(isinstance(entry, (str, dict)) for entry in value)
        return None if is_right else "a list of URLs, or of objects with a url"
    if field == "rules":
        is_right = isinstance(value, list) and all(isinstance(entry, dict) for entry in value)
        return None if is_right else "a list of objects with a pattern"
    return None if isinstance(value, str) else "a string"


def _expected_of_webhook(field: str, value: Any) -> str | None:
    """As `_expected`. What `events` and `headers` may hold, their columns know."""
    if field in _WEBHOOK_SWITCHES:
        return None if isinstance(value, bool) else "true or false"
    if field in _WEBHOOK_TEXTS:
        return None if isinstance(value, str) else "a string"
    return None


def _expected_of_rule(field: str, value: Any) -> str | None:
    """See `_expected`."""
    if field in limits.RULE_BOUNDS:
        return None if type(value) is int else "a whole number"
    if field in RULE_SWITCHES:
        return None if isinstance(value, bool) else "true or false"
    return None if isinstance(value, str) else "a string"


# -- the database ------------------------------------------------------------------------------------------------------


def sync(wanted: Sequence[Declaration]) -> None:
    """Make the database equal to the declarations. A second call writes nothing, so workers that start together write
    once.

    Raises DeclarationError if an application that was created in the admin has a declared key or name.
    """
    using = router.db_for_write(models.Application)  # a replica may lag
    if _is_equal(wanted, using):
        return
    with transaction.atomic(using=using):
        models.Generation.lock(using)
        if not _is_equal(wanted, using):
            _write(using, {declaration.application.app_id: declaration for declaration in wanted})


def check(**_: object) -> list[checks.CheckMessage]:
    """System check: reports a text that would stop the start of a worker."""
    try:
        parse(conf.settings.APPS)
    except errors.DeclarationError as error:
        return [checks.Error(str(error), id="fanfare.E003")]
    return []


def _is_equal(wanted: Iterable[Declaration], using: str) -> bool:
    rows = models.Application.objects.using(using).filter(declared=True).with_parts()
    return {row.app_id: _values(row, row.webhooks.all(), row.rules.all()) for row in rows} == {
        declaration.application.app_id: _values(declaration.application, declaration.webhooks, declaration.rules)
        for declaration in wanted
    }


def _write(using: str, wanted: dict[str, Declaration]) -> None:
    rows = {row.app_id: row for row in models.Application.objects.using(using).all()}
    applications = {app_id: declaration.application for app_id, declaration in wanted.items()}
    _refuse_conflicts(applications, rows)
    _free_moved_values(applications, rows)
    for app_id, row in rows.items():
        if row.declared and app_id not in wanted:
            row.declared = row.enabled = False
            row.save()
    for app_id, declaration in wanted.items():
        row = rows.get(app_id, models.Application())
        for column in _COLUMNS:
            setattr(row, column, getattr(declaration.application, column))
        row.declared = True
        row.save()
        _write_parts(row, list(row.webhooks.using(using)), declaration.webhooks, "url", _WEBHOOK_COLUMNS)
        _write_parts(row, list(row.rules.using(using)), declaration.rules, "pattern", _RULE_COLUMNS)


def _write_parts(
    application: models.Application, rows: list[Part], wanted: Iterable[Part], same: str, columns: Iterable[str]
) -> None:
    """A part with an unchanged column `same` keeps its row, and a webhook with it its pending deliveries."""
    for declaration in wanted:
        row = next((row for row in rows if getattr(row, same) == getattr(declaration, same)), None)
        if row is None:
            row = type(declaration)(application=application)
        else:
            rows.remove(row)
        for column in columns:
            setattr(row, column, getattr(declaration, column))
        row.save()
    for row in rows:
        row.delete()


def _refuse_conflicts(wanted: dict[str, models.Application], rows: dict[str, models.Application]) -> None:
    for declaration in wanted.values():
        for row in rows.values():
            if row.declared or row.app_id in wanted:
                continue
            for column in _UNIQUE:
                if getattr(row, column) == getattr(declaration, column):
                    raise errors.DeclarationError(
                        f"FANFARE_APPS: the application with id {declaration.app_id} has the same {column} as "
                        f"application {row.app_id}, which FANFARE_APPS does not declare; change one of them."
                    )


def _free_moved_values(wanted: dict[str, models.Application], rows: dict[str, models.Application]) -> None:
    """Replace keys and names that move to another application: their columns are unique."""
    owners = {(column, getattr(item, column)): app_id for app_id, item in wanted.items() for column in _UNIQUE}
    for app_id, row in rows.items():
        key_moves = owners.get(("key", row.key), app_id) != app_id
        name_moves = owners.get(("name", row.name), app_id) != app_id
        if key_moves:
            row.key = credentials.generate_key()
        if name_moves:
            row.name = f"Application {app_id}, formerly {row.name}"[:100]
        if key_moves or name_moves:
            row.save()


def _values(
    application: models.Application, webhooks: Iterable[models.WebhookEndpoint], rules: Iterable[models.ChannelRule]
) -> tuple[Any, ...]:
    """The values to compare. The order of the webhooks does not matter."""
    hooks = sorted(
        json.dumps([getattr(webhook, column) for column in _WEBHOOK_COLUMNS], sort_keys=True) for webhook in webhooks
    )
    kept = [[getattr(rule, column) for column in _RULE_COLUMNS] for rule in rules]
    return (*(getattr(application, column) for column in _COLUMNS), hooks, kept)
