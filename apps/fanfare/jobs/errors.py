"""The exceptions of this package."""

from __future__ import annotations

from fanfare.errors import InvalidJob

__all__ = ["InvalidJob", "LeaseLost"]


class LeaseLost(Exception):
    """Another worker may hold the lease now."""

    code = "lease_lost"
