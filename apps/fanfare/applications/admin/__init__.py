"""Applications in the admin."""

from __future__ import annotations

from fanfare.applications.admin.applications import ApplicationAdmin

__all__ = ["ApplicationAdmin"]
