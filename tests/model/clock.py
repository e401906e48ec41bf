"""A virtual clock: an event loop that jumps to the time of its next timer instead of sleeping."""

from __future__ import annotations

import asyncio
import contextlib
import selectors
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

START_S = 1_700_000_000.0  # Unix time at the start of a loop


class _Selector(selectors.SelectSelector):
    """Waits for nothing but the loop's own timers."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        assert timeout is not None, "the run waits for something that cannot happen"
        self.now_s += timeout
        return super().select(0)


@contextlib.contextmanager
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop for many runs. Inside, `time.monotonic` and `time.time` are its clock."""
    selector = _Selector()
    made = asyncio.SelectorEventLoop(selector)
    with (
        mock.patch.object(time, "monotonic", lambda: selector.now_s),
        mock.patch.object(time, "time", lambda: START_S + selector.now_s),
    ):
        try:
            yield made
        finally:
            made.close()
