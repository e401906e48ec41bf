"""Remembers for some seconds that a rule admitted a visitor: `@channel(pattern, cache_seconds=30)`.

After a restart all pages ask `/pusher/auth` at once, and a page that returns asks once for each of its channels. A rule
with `cache_seconds` is then called once for a visitor and a channel. A refusal is not remembered: a visitor who gets
access is admitted at the next try.

An answer belongs to one visitor, in one session, at one host. A termination (`presence.disconnect_user`) of any user
empties the cache of every worker, and so does a gap of the log, in which a termination may have been lost. A process
without a worker (WSGI beside a worker, or a project with `FANFARE_REMOTE_URL`) reads no log: there an answer lives for
its `cache_seconds`.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Hashable
from typing import Any, Final

from django.http import HttpRequest

MOST: Final = 10_000  # answers in a process; about 1 kB each, with their keys
MOST_SECONDS: Final = 3_600


def visitor_key(user: Any, request: HttpRequest) -> Hashable | None:
    """What tells this visitor from others; None if nothing does: the user has no primary key, or is anonymous without a
    session and a header.

    The session and the header are part of it because middleware may give the user rights of this session alone, such
    as a second factor, and the host because it may select the tenant.
    """
    if user.is_authenticated and getattr(user, "pk", None) is None:
        return None
    session = getattr(getattr(request, "session", None), "session_key", None)
    header = request.headers.get("Authorization")
    if not user.is_authenticated and session is None and header is None:
        return None
    carried = repr((session, header, request.get_host()))
    digest = hashlib.sha256(carried.encode(errors="surrogateescape")).digest()  # headers may have several kB
    return user.__class__, user.pk if user.is_authenticated else None, digest


class RuleCache:
    """Answers by key, the oldest first. Safe to use from several threads."""

    def __init__(self, *, most: int = MOST, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        self._answers: dict[Hashable, tuple[Any, float]] = {}  # with the time of expiry
        self._generation = 0
        self._reads_log: Callable[[], bool] = lambda: True
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._answers)

    def find(self, key: Hashable) -> Any | None:
        found = self._answers.get(key)
        return found[0] if found is not None and self._clock() < found[1] else None

    def follow(self, reads_log: Callable[[], bool]) -> None:
        """Keep answers only while `reads_log()` is true. A worker that starts, or starts again after a gap, does not
        read the terminations before its new position."""
        self._reads_log = reads_log

    @property
    def generation(self) -> int | None:
        """To read before the visitor's rights are, and to pass to `keep`. None: keep nothing."""
        return self._generation if self._reads_log() else None

    def keep(self, key: Hashable, answer: Any, seconds: float, generation: int | None) -> None:
        """Keep an answer, unless the cache was cleared since `generation`: the rule may have read old rights."""
        expires_s = self._clock() + seconds
        with self._lock:
            if generation is None or generation != self._generation:
                return
            self._answers.pop(key, None)
            self._answers[key] = answer, expires_s
            while len(self._answers) > self._most:
                del self._answers[next(iter(self._answers))]

    def clear(self) -> None:
        with self._lock:
            self._generation += 1
            self._answers.clear()


cache = RuleCache()  # of this process
