"""Applications that the environment declares, for containers that have no one to click.

FANFARE_APPS takes one of two forms:

    42:a-key:a-secret, 43:another-key:another-secret:Its name
    [{"id": "42", "key": "a-key", "secret": "a-secret", "name": "Shop", "client_events": true, "max_connections": 500}]

The environment is the truth of these applications: the database follows it when a worker starts. One that is not
declared any more is disabled, never deleted, and from then on belongs to the admin.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from django.conf import settings
from django.core import checks
from django.db import transaction

from apps.applications import credentials, errors, limits, models

REQUIRED = ("id", "key", "secret")
SWITCHES = ("enabled", "client_events")
FIELDS = (*REQUIRED, "name", *SWITCHES, "allowed_origins", *limits.NAMES)

_COLUMNS = tuple("app_id" if field == "id" else field for field in FIELDS)
_UNIQUE = ("key", "name")


def parse(text: str) -> list[models.Application]:
    """The declared applications, not saved. Raises DeclarationError, whose message names the entry and the field."""
    text = text.strip()
    if not text:
        return []
    entries = _json_entries(text) if text[0] in "[{" else _compact_entries(text)
    applications = [_application(number, entry) for number, entry in enumerate(entries, start=1)]
    for column in ("app_id", *_UNIQUE):
        numbers: dict[str, int] = {}
        for number, application in enumerate(applications, start=1):
            first = numbers.setdefault(getattr(application, column), number)
            if first != number:
                field = column.removeprefix("app_")
                raise errors.DeclarationError(f"FANFARE_APPS: entries {first} and {number} have the same {field}.")
    return applications


def sync(declarations: Sequence[models.Application]) -> None:
    """Make the database agree. Writes nothing where it does already, so workers that start together do it once.

    Raises DeclarationError where an application that somebody else made has a declared key or name.
    """
    if _is_in_step(declarations):
        return
    using = models.Application.objects.db
    with transaction.atomic(using=using):
        models.Generation.lock(using)
        if not _is_in_step(declarations):
            _write(declarations)


def check(**_: object) -> list[checks.CheckMessage]:
    """The system check: what would stop a worker, said by `manage.py check` already."""
    try:
        parse(settings.FANFARE_APPS)
    except errors.DeclarationError as error:
        return [checks.Error(str(error), id="applications.E001")]
    return []


# -- reading the text -----------------------------------------------------------------------------------------------


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


def _application(number: int, entry: dict[str, Any]) -> models.Application:
    values = dict(entry)
    app_id = values.get("id")
    if isinstance(app_id, int) and not isinstance(app_id, bool):
        app_id = values["id"] = str(app_id)
    # Only what certainly is an id is shown: who mixes the fields up may have put the secret here.
    is_id = isinstance(app_id, str) and credentials.ID.match(app_id)
    place = f"FANFARE_APPS: entry {number}" + (f" (id {app_id})" if is_id else "")

    for field in values:
        if field not in FIELDS:
            raise errors.DeclarationError(f"{place}: there is no field {field!r}; the fields are {', '.join(FIELDS)}.")
    for field in REQUIRED:
        if field not in values:
            raise errors.DeclarationError(f"{place}: {field} is missing.")
    for field, value in values.items():
        expected = _expected_instead(field, value)
        if expected:
            raise errors.DeclarationError(f"{place}: {field} must be {expected}.")

    origins = values.pop("allowed_origins", [])
    application = models.Application(
        app_id=values.pop("id"),
        name=values.pop("name", "") or f"Application {app_id}",
        allowed_origins=origins if isinstance(origins, str) else "\n".join(origins),
        declared=True,
        **values,
    )
    for column, problem in application.problems().items():
        raise errors.DeclarationError(f"{place}: {column.removeprefix('app_')}: {problem}")
    return application


def _expected_instead(field: str, value: Any) -> str | None:
    """What the value should have been, or None if its type is right."""
    if field in SWITCHES:
        return None if isinstance(value, bool) else "true or false"
    if field in limits.NAMES:
        return None if value is None or type(value) is int else "a whole number, or null for the default"
    if field == "allowed_origins" and isinstance(value, list):
        return None if all(isinstance(entry, str) for entry in value) else "a list of texts"
    return None if isinstance(value, str) else "a text"


# -- writing the database -------------------------------------------------------------------------------------------


def _is_in_step(declarations: Iterable[models.Application]) -> bool:
    rows = {row.app_id: row for row in models.Application.objects.filter(declared=True)}
    wanted = {declaration.app_id: declaration for declaration in declarations}
    return rows.keys() == wanted.keys() and all(_values(rows[app_id]) == _values(wanted[app_id]) for app_id in rows)


def _write(declarations: Sequence[models.Application]) -> None:
    wanted = {declaration.app_id: declaration for declaration in declarations}
    rows = {row.app_id: row for row in models.Application.objects.all()}
    _refuse_conflicts(wanted, rows)
    _make_way(wanted, rows)
    for app_id, row in rows.items():
        if row.declared and app_id not in wanted:
            row.declared = row.enabled = False
            row.save()
    for app_id, declaration in wanted.items():
        row = rows.get(app_id, models.Application())
        for column in _COLUMNS:
            setattr(row, column, getattr(declaration, column))
        row.declared = True
        row.save()


def _refuse_conflicts(wanted: dict[str, models.Application], rows: dict[str, models.Application]) -> None:
    for declaration in wanted.values():
        for row in rows.values():
            if row.declared or row.app_id in wanted:
                continue
            for column in _UNIQUE:
                if getattr(row, column) == getattr(declaration, column):
                    raise errors.DeclarationError(
                        f"FANFARE_APPS: the application with id {declaration.app_id} has the same {column} as "
                        f"application {row.app_id}, which was made elsewhere; change one of them."
                    )


def _make_way(wanted: dict[str, models.Application], rows: dict[str, models.Application]) -> None:
    """Free the keys and names that move to another application, before the unique columns see them twice."""
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


def _values(application: models.Application) -> tuple[Any, ...]:
    return tuple(getattr(application, column) for column in _COLUMNS)
