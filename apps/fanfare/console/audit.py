"""Records what users do in the console."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from asgiref.sync import ThreadSensitiveContext, sync_to_async
from django import db

from fanfare.console.permissions import Access


async def record(
    access: Access, action: str, *, application: str = "", target: str = "", detail: Mapping[str, Any] | None = None
) -> None:
    """Write a row of the audit log, before the action itself. `detail` is JSON and holds no secrets."""
    async with ThreadSensitiveContext():
        await sync_to_async(_write)(access, action, application, target, dict(detail or {}))


def _write(access: Access, action: str, application: str, target: str, detail: dict[str, Any]) -> None:
    from fanfare.console.models import AuditEntry

    try:
        AuditEntry.objects.create(
            user_id=access.user_id[:64],
            user=access.user[:150],
            action=action,
            app_id=application,
            target=target[:250],
            detail=detail,
        )
    finally:
        db.connections.close_all()
