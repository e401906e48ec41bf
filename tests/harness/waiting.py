"""Wait for a condition, never for a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

PAUSE = 0.02  # seconds between two looks: short beside a human's patience, long beside one look


def until(condition: Callable[[], T], within: float, what: str) -> T:
    """The first true value of `condition`. `within` in seconds; AssertionError says `what` did not happen."""
    deadline = time.monotonic() + within
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {within} s, last seen {value!r}")
        time.sleep(PAUSE)


async def until_async(condition: Callable[[], Awaitable[T]], within: float, what: str) -> T:
    """`until` for a condition that is awaited."""
    deadline = time.monotonic() + within
    while True:
        value = await condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {within} s, last seen {value!r}")
        await asyncio.sleep(PAUSE)
