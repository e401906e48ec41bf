"""The engine's exceptions.

EngineError
├── EngineUnavailable       the log cannot be read or written now; try again
│   ├── LogFull             it reached its largest size
│   └── EngineMoved         it was moved to another store
├── EngineMisconfigured     the configuration is wrong; an operator must change it
└── OverBudget              the application published too much in this second
"""

from __future__ import annotations

from fanfare.errors import FanfareError
from fanfare.runtime import text

LONGEST = 2_000  # characters of a message


class EngineError(FanfareError):
    """Base class. `code` is for machines, the message for people: a line that is safe to log, also where it quotes a
    damaged log or a database."""

    code = "engine_error"

    def __init__(self, message: str = "") -> None:
        super().__init__(text.clean_lines(message, LONGEST))


class EngineUnavailable(EngineError):
    """Nothing was acknowledged: the publisher may try again."""

    code = "engine_unavailable"


class LogFull(EngineUnavailable):
    """The log holds as much as it may, or its disk is nearly full: publications are refused until it was trimmed."""


class EngineMoved(EngineUnavailable):
    """The log was moved to another store (`manage.py fanfare engine move`), which the message names."""


class EngineMisconfigured(EngineError):
    """The engine cannot start with these settings; the message names the one to change."""

    code = "engine_misconfigured"


class OverBudget(EngineError):
    """Nothing was published. `limit` and `actual` are publications in this second."""

    code = "over_budget"

    def __init__(self, limit: int, actual: int) -> None:
        super().__init__(f"{actual} events would be published in this second; {limit} are allowed")
        self.limit = limit
        self.actual = actual
