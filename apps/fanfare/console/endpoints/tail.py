"""The live tail."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from fanfare.console import filters, tails, watches
from fanfare.console.requests import Problem, Request, stream

SILENCE_S = 10.0  # an empty batch after it, so that proxies keep the connection open


@stream("tail")
async def tail(request: Request) -> AsyncIterator[Any]:
    """Batches of items: {"items": […], "seen": how many the filter took, "missed": how many this page did not get,
    "unexamined": how many events may match the filter and were not decoded}.

    The first batch comes when the tail has begun, or after `tails.BEGIN_S`. `reads_log` says whether events are read,
    `missing` how many workers do not send their items yet; a later batch says when this changes. A filter that is none
    is answered with its `problem` and the `field`, and the stream ends.
    Arguments: `types` (comma-separated), `app`, `channel`, `event`, `user`, `socket`, `text`.
    """
    try:
        wanted = filters.parse(request.query, request.access.applications())
    except filters.InvalidFilter as error:
        yield {"items": [], "seen": 0, "problem": str(error), "field": error.field}
        return
    try:
        async with request.worker.tails.open(wanted) as page:
            begun = await page.begin(tails.BEGIN_S)
            yield {"items": [], "seen": 0, "items_per_s": watches.ITEMS_PER_S, **begun}
            while (batch := await page.next(SILENCE_S)) is not None:
                yield batch
    except tails.TooManyTails:
        raise Problem(
            503, f"This worker serves {tails.MOST_TAILS} live tails with other filters. Use a filter of another page."
        ) from None
