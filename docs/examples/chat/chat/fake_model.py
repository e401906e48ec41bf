"""A language model that needs no network: the same question has the same answer, word by word."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

TOKENS = 200
TOKENS_PER_SECOND = 30
WORDS = ["words", "appear", "one", "by", "one,", "in", "日本語", "or", "größer,", "🎺", "and", "stay."]


def answer(question: str) -> list[str]:
    """All tokens of the answer."""
    chosen = random.Random(question)  # noqa: S311  (no secret)
    return [f"{number}:{chosen.choice(WORDS)} " for number in range(1, TOKENS + 1)]


async def tokens(question: str, skip: int = 0) -> AsyncIterator[str]:
    """The answer from token number `skip` on. A real model would get the text so far, and continue it."""
    for token in answer(question)[skip:]:
        await asyncio.sleep(1 / TOKENS_PER_SECOND)
        yield token
