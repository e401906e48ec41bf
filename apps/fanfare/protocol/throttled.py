"""A log that a crowd cannot fill: strangers decide how often they are refused, not how much is written about it."""

from __future__ import annotations

import logging
from collections.abc import Callable

from fanfare.protocol import rates


class Log:
    """Writes at most `per_second` lines a second, in bursts of as many. A line tells how many were left out."""

    def __init__(self, logger: logging.Logger, per_second: int, clock: Callable[[], float]) -> None:
        self._logger = logger
        self._per_second = per_second
        self._clock = clock
        self._tokens = rates.TokenBucket(per_second, clock())
        self._left_out = 0

    def info(self, message: str, *args: object) -> None:
        if not self._tokens.take(self._per_second, self._per_second, self._clock()):
            self._left_out += 1
            return
        if self._left_out:
            message, args = f"{message} (%d more were not logged)", (*args, self._left_out)
            self._left_out = 0
        self._logger.info(message, *args)
