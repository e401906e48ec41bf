"""Records of sessions, as a worker writes them and takes their tokens.

A release ends a worker's hold on a token. Until it is written, the next connection of the page takes the token from a
socket that is gone, and after the second time the token is refused as shared. So a release is also written while the
memory is full, and again if it fails; then the script writes it only if the first one was not.
"""

from __future__ import annotations

import collections
from collections.abc import Callable
from dataclasses import dataclass

from fanfare.engine import errors, interface
from fanfare.engine.redis import operations
from fanfare.engine.redis.partition import Partition


@dataclass(slots=True, eq=False)
class _Release:
    operation: operations.Operation
    has_failed: bool = False


class Sessions:
    def __init__(self, of: Callable[[str, str], Partition], counters: collections.Counter[str]) -> None:
        self._of = of
        self._counters = counters
        self._releases: dict[tuple[str, str], _Release] = {}  # by application and token: not written yet

    def _partition(self, app: str, token: str) -> Partition:
        return self._of(app, f"#session-{token}")

    def save(self, app: str, token: str, record: bytes, seconds: int, holder: str, *, release: bool) -> None:
        operation = ("s", app, token, record, seconds, holder, release)
        if release:
            self._release((app, token), operation)
        else:
            self._releases.pop((app, token), None)
            self._partition(app, token).calls.submit(operations.Call([operation], operations.ignore))

    def _release(self, name: tuple[str, str], operation: operations.Operation, *, again: bool = False) -> None:
        if again:
            *fields, _ = operation
            operation = (*fields, 2)
        release = self._releases[name] = _Release(operation)

        def settled(answer: operations.Answer | None, _error: errors.EngineError | None) -> None:
            if self._releases.get(name) is not release:
                return
            if answer is not None:
                del self._releases[name]
            else:
                self._counters["releases_retried"] += 1
                release.has_failed = True

        self._partition(*name).calls.submit(operations.Call([operation], settled, frees=True), urgent=again)

    def repeat_releases(self) -> None:
        for name, release in list(self._releases.items()):
            if release.has_failed:
                self._release(name, release.operation, again=True)

    async def take(self, app: str, token: str, holder: str) -> interface.Taken:
        """Raises EngineUnavailable."""
        answer = await self._partition(app, token).calls.ask(("t", app, token, holder))
        record, before, changed_ms, lost_ms = answer.results[0]
        changed_s, lost_s = (ms / 1000 if ms >= 0 else None for ms in (changed_ms, lost_ms))
        return interface.Taken(record or None, before.decode() or None, changed_s, lost_s)
