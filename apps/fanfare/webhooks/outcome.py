"""The result of a request to an endpoint. Separate from the client, because aiohttp takes 7 MB of memory."""

from __future__ import annotations

from typing import NamedTuple


class Outcome(NamedTuple):
    """The result of a request. `status` is None without a response; `error` is empty if it was accepted.

    All texts are clean: they can be stored and logged.
    """

    status: int | None
    error: str
    answer: str
    duration_ms: int

    @property
    def accepted(self) -> bool:
        return not self.error
