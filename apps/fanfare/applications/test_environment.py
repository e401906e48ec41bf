"""Whether this process runs tests that must not write into the log of a deployment."""

from __future__ import annotations

from django.core import mail

from fanfare.engine import current


def is_active() -> bool:
    """A test runner has called `setup_test_environment`, and the test has neither an engine of its own nor a worker."""
    if not hasattr(mail, "outbox") or current.is_replaced():
        return False
    made = current.made()
    return made is None or not made.is_open  # it is open in a worker
