"""The engine's exceptions.

EngineError
├── EngineUnavailable   the log cannot be read or written now; try again
└── EngineMisconfigured the place of the log is wrong; a person must act
"""

from __future__ import annotations

from fanfare.errors import FanfareError


class EngineError(FanfareError):
    """Base class. `code` is for machines, the message for people."""

    code = "engine_error"


class EngineUnavailable(EngineError):
    """Nothing was acknowledged: the publisher may try again."""

    code = "engine_unavailable"


class EngineMisconfigured(EngineError):
    """The engine refuses to start in this place; the message says what to change."""

    code = "engine_misconfigured"


class OverBudget(EngineError):
    """Nothing was published. `limit` and `actual` are publications in this second."""

    code = "over_budget"

    def __init__(self, limit: int, actual: int) -> None:
        super().__init__(f"{actual} events would be published in this second; {limit} are allowed")
        self.limit = limit
        self.actual = actual
