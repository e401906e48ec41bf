"""The result of a request to an endpoint. Apart from the client, which imports aiohttp: 7 MB of a worker's memory."""

from __future__ import annotations

from typing import NamedTuple


class Outcome(NamedTuple):
    """The result of a request. `status` is None without a response; `error` is empty if it was accepted.

    All texts can be stored and logged as they are.
    """

    status: int | None
    error: str
    answer: str
    duration_ms: int

    @property
    def accepted(self) -> bool:
        return not self.error
