"""Wait for a condition instead of sleeping."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

PAUSE = 0.02  # seconds between two checks
# Limits are given for a machine that does nothing else. A loaded one, such as a CI with two cores, gets more time.
SLACK = 3.0


def until(condition: Callable[[], T], within: float, what: str) -> T:
    """The first true value of `condition`. After `within` times `SLACK` seconds, AssertionError names `what`."""
    deadline = time.monotonic() + within * SLACK
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"timed out after {within * SLACK:g} s: {what}; last value {value!r}")
        time.sleep(PAUSE)


async def until_async(condition: Callable[[], Awaitable[T]], within: float, what: str) -> T:
    """`until` for an asynchronous condition."""
    deadline = time.monotonic() + within * SLACK
    while True:
        value = await condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"timed out after {within * SLACK:g} s: {what}; last value {value!r}")
        await asyncio.sleep(PAUSE)
