"""The live tail."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from fanfare.console import filters, tails
from fanfare.console.requests import Problem, Request, stream

WAIT_S = 60.0


@stream("tail")
async def tail(request: Request) -> AsyncIterator[Any]:
    """Batches of items: {"items": […], "seen": how many the filter took, "missed": how many this page did not get,
    "unexamined": how many events may match the filter and were not decoded}.

    A filter that is none is answered with its `problem` and the `field`, and the stream ends.
    Arguments: `types` (comma-separated), `app`, `channel`, `event`, `user`, `socket`, `text`.
    """
    try:
        wanted = filters.parse(request.query, request.access.applications())
    except filters.InvalidFilter as error:
        yield {"items": [], "seen": 0, "problem": str(error), "field": error.field}
        return
    try:
        async with request.worker.tails.open(wanted) as page:
            yield {"items": [], "seen": 0, "items_per_s": tails.ITEMS_PER_S}
            while (batch := await page.next(WAIT_S)) is not None:
                yield batch
    except tails.TooManyTails:
        raise Problem(
            503, f"This worker serves {tails.MOST_TAILS} live tails with other filters. Use a filter of another page."
        ) from None
