"""The exceptions of this package."""

from __future__ import annotations


class InvalidJob(Exception):
    """A function cannot be a background job in the way that it is declared. `code` is for machines."""

    code = "invalid_job"


class LeaseLost(Exception):
    """Another worker may hold the lease now."""

    code = "lease_lost"
