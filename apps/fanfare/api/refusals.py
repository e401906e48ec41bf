"""What was refused, in the log: with its reason, and never so often that a bad client fills the disk."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from fanfare.api import asgi, errors

logger = logging.getLogger(__name__)

SECONDS_PER_LINE = 1.0  # for each reason code: there are about thirty of them, so at most thirty lines a second
SHOWN_CHARACTERS = 200  # of the path


@dataclass(slots=True)
class _Reason:
    logged_at: float
    left_out: int = 0


class RefusalLog:
    """`now`: seconds of any clock that does not stop."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._reasons: dict[str, _Reason] = {}

    def note(self, error: errors.ApiError, scope: asgi.Scope) -> None:
        """Log a refusal, or count it for the next line of its reason. The query is left out: it can be used again."""
        now = self._now()
        reason = self._reasons.get(error.code)
        if reason is None:
            left_out = 0
            self._reasons[error.code] = _Reason(now)
        elif now - reason.logged_at < SECONDS_PER_LINE:
            reason.left_out += 1
            return
        else:
            left_out = reason.left_out
            reason.logged_at, reason.left_out = now, 0
        client = scope.get("client")
        logger.warning(
            "API request refused: %s (%d) %s %.*r from %s; %d more since the last such line",
            error.code,
            error.status,
            scope["method"],
            SHOWN_CHARACTERS,
            scope["path"],
            client[0] if client else "unknown",
            left_out,
        )
