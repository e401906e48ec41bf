"""Keeping the database in step with FANFARE_APPS.

The environment is the truth of the applications that it declares, and of their webhooks and channel rules: the database
follows it when a worker starts. An application that is not declared any more is disabled, never deleted, and from then
on belongs to the admin.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from django.core import checks
from django.db import router, transaction
from django.db.models import Prefetch, QuerySet

from fanfare import conf
from fanfare.applications import credentials, declarations, errors, limits, models

_UNIQUE = ("key", "name")
_COLUMNS = (
    *("app_id", "key", "secret", "previous_secret", "previous_secret_until", "name", "allowed_origins"),
    *declarations.SWITCHES,
    *limits.BOUNDS,
)
_WEBHOOK_COLUMNS = ("url", "event_types", "channel_prefix", "headers", "batching", "enabled")
_RULE_COLUMNS = ("position", *declarations.RULE_FIELDS)

Part = TypeVar("Part", models.WebhookEndpoint, models.ChannelRule)


def sync(wanted: Sequence[declarations.Declaration]) -> None:
    """Make the database agree. Writes nothing where it does already, so workers that start together do it once.

    Raises DeclarationError where an application that was created in the admin has a declared key or name.
    """
    using = router.db_for_write(models.Application)  # a replica may lag behind
    if _is_in_step(wanted, using):
        return
    with transaction.atomic(using=using):
        models.Generation.lock(using)
        if not _is_in_step(wanted, using):
            _write(using, {declaration.application.app_id: declaration for declaration in wanted})


def check(**_: object) -> list[checks.CheckMessage]:
    """The system check: what would stop a worker, said by `manage.py check` already."""
    try:
        declarations.parse(conf.settings.APPS)
    except errors.DeclarationError as error:
        return [checks.Error(str(error), id="fanfare.E003")]
    return []


def with_parts(rows: QuerySet[models.Application]) -> QuerySet[models.Application]:
    """Applications with their webhooks and rules, from the database of `rows`: a router may read parts elsewhere."""
    return rows.prefetch_related(
        Prefetch("webhooks", models.WebhookEndpoint.objects.using(rows.db)),
        Prefetch("rules", models.ChannelRule.objects.using(rows.db)),
    )


def _is_in_step(wanted: Iterable[declarations.Declaration], using: str) -> bool:
    rows = with_parts(models.Application.objects.using(using).filter(declared=True))
    return {row.app_id: _values(row, row.webhooks.all(), row.rules.all()) for row in rows} == {
        declaration.application.app_id: _values(declaration.application, declaration.webhooks, declaration.rules)
        for declaration in wanted
    }


def _write(using: str, wanted: dict[str, declarations.Declaration]) -> None:
    rows = {row.app_id: row for row in models.Application.objects.using(using).all()}
    applications = {app_id: declaration.application for app_id, declaration in wanted.items()}
    _refuse_conflicts(applications, rows)
    _make_way(applications, rows)
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
    """A part whose column `same` stays keeps its row, and with it what is still to be delivered to a webhook."""
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


def _values(
    application: models.Application, webhooks: Iterable[models.WebhookEndpoint], rules: Iterable[models.ChannelRule]
) -> tuple[Any, ...]:
    """What is compared; the order of the webhooks is not."""
    told = sorted(
        json.dumps([getattr(webhook, column) for column in _WEBHOOK_COLUMNS], sort_keys=True) for webhook in webhooks
    )
    kept = [[getattr(rule, column) for column in _RULE_COLUMNS] for rule in rules]
    return (*(getattr(application, column) for column in _COLUMNS), told, kept)
