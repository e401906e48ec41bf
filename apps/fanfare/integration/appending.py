"""Writes publications into the log, from any process of the project, and counts them.

The traces of the console name the publisher of an event: the function of the project, its task and the program.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from types import FrameType

import orjson

from fanfare import errors
from fanfare.engine import errors as engine_errors
from fanfare.engine import interface
from fanfare.hub import traces
from fanfare.integration import target
from fanfare.runtime import text as texts
from fanfare.runtime.log_throttle import exception_line

logger = logging.getLogger("fanfare.integration")

COUNTERS = (
    "published",
    "duplicates",
    "failed_after_commit",
    "outbox_left",
    "outbox_relayed",
    "outbox_late",
    "outbox_failed",
)

# Packages whose functions are between a project's code and the log.
_NOT_CALLERS = frozenset(["fanfare", "django", "asgiref", "contextlib", "threading", "concurrent", "functools"])

# The modules whose class Task calls the function of a task; the second one is the package for Django 5.2.
_DJANGO_TASKS = ("django.tasks.base", "django_tasks.base")

ANNOUNCE_S = 0.5  # for the publisher's record, at most five times a second

_sampler = traces.Sampler()
_counts: Counter[str] = Counter()
_counts_lock = threading.Lock()  # += on a Counter is not atomic, and every view has its own thread


class Published:
    """What `publish` returns.

    `entry`: the event's position in the log, `PARTITION:ID`, with which `manage.py fanfare trace` and the console show
    its path. `position`: the position in the channel's history, `EPOCH:OFFSET`, if the channel keeps one. Both are None
    until the commit that sends the event, after a duplicate, and where another process sends it (the outbox, a separate
    deployment). `duplicate`: an event with the same idempotency key was published before.
    """

    # Set by `append`: the engine's receipt, and the partition of the log.
    receipt = interface.Receipt(None, duplicate=False)
    partition = 0

    @property
    def entry(self) -> str | None:
        return traces.position(self.partition, self.receipt.id) if self.receipt.id else None

    @property
    def position(self) -> str | None:
        return None if self.receipt.position is None else str(self.receipt.position)

    @property
    def duplicate(self) -> bool:
        return self.receipt.duplicate

    def __repr__(self) -> str:
        return f"<Published {self.entry or 'without a position (yet)'}>"


Handles = Sequence[Published | None]  # one for each publication; empty: none


def append(publications: Sequence[interface.Publication], handles: Handles = ()) -> None:
    """Write all of them or none into the log. Raises EngineError."""
    outlet, recorder = target.engine(), traces.here
    is_recorded = _is_recorded(publications)
    began = time.time() if is_recorded else 0.0
    receipts = outlet.append_blocking(publications)
    if any(handles):
        for handle, publication, receipt in zip(handles, publications, receipts, strict=True):
            if handle is not None:
                handle.receipt = receipt
                if receipt.id:
                    handle.partition = outlet.partition(publication.app, publication.channel)
    if is_recorded and recorder is not None:
        recorder.published(publications, receipts, _publisher(), began)
    elif is_recorded and any(receipt.id for receipt in receipts):  # a remote deployment's API answers no ids
        _announce(outlet, traces.published(outlet.partition, publications, receipts, _publisher(), began))
    events = duplicates = 0
    for publication, receipt in zip(publications, receipts, strict=True):
        events += publication.kind is interface.Kind.EVENT
        duplicates += receipt.duplicate
    with _counts_lock:
        _counts["published"] += events - duplicates
        _counts["duplicates"] += duplicates


def append_or_report(publications: Sequence[interface.Publication], handles: Handles = ()) -> None:
    """`append` for data that is already saved: every error is logged and counted instead of raised."""
    try:
        append(publications, handles)
    except Exception as error:  # noqa: BLE001
        _report_unpublished(publications, error)


def _report_unpublished(publications: Sequence[interface.Publication], error: Exception) -> None:
    count("failed_after_commit", len(publications))
    if isinstance(
        error, engine_errors.EngineError | errors.PublishError
    ):  # a remote deployment refuses the event only here
        reason, trace = f"{error} ({error.code})", None  # a traceback through the commit is of no use
    else:
        reason, trace = texts.clean(exception_line(error)), error
    for publication in publications:
        logger.error(
            "Not published after the commit: %s of application %s: %s",
            _described(publication),
            publication.app,
            reason,
            exc_info=trace,
        )
        trace = None


def _described(publication: interface.Publication) -> str:
    if publication.kind is not interface.Kind.EVENT:
        return f"command {publication.channel!r}"
    return f"event {orjson.loads(publication.body)['event']!r} on channel {publication.channel!r}"


# -- counters ----------------------------------------------------------------------------------------------------------


def count(name: str, n: int = 1) -> None:
    with _counts_lock:
        _counts[name] += n


def statistics() -> dict[str, int]:
    """Counters since the start of this process; docs/reference/statistics.md explains each."""
    with _counts_lock:
        return {name: _counts[name] for name in COUNTERS}


# -- the publisher, for traces -----------------------------------------------------------------------------------------


def publishers(publications: Sequence[interface.Publication]) -> list[str]:
    """The records of publications that a transaction writes itself, JSON. The process that moves them into the log does
    not know their publisher."""
    if not _is_recorded(publications):
        return []
    began, publisher = time.time(), _publisher()
    recorded = publications[: interface.ANNOUNCED_EVENTS]
    return [orjson.dumps(traces.publishing(one, publisher, began)).decode() for one in recorded]


def _is_recorded(publications: Sequence[interface.Publication]) -> bool:
    """Whether the traces of these events name their publisher."""
    if not publications:
        return False
    first, recorder = publications[0], traces.here
    if recorder is not None:
        return recorder.wants(first.app, first.channel)
    return first.kind is interface.Kind.EVENT and _sampler.wants()


def _announce(outlet: target.Outlet, found: Sequence[tuple[traces.Key, traces.Record]]) -> None:
    """Give the workers the records of this process, which has no worker. The events are in the log: an error costs only
    the publisher's line on the page of the trace.
    """
    try:
        outlet.append_blocking([traces.announcement(found)], timeout=ANNOUNCE_S)
    except engine_errors.EngineError as error:
        logger.debug("The publisher of event %s is not recorded: %s", traces.position(*found[0][0]), error)


def _publisher() -> dict[str, str]:
    """The project's function that publishes, the task that it runs in, and the program."""
    frame: FrameType | None = sys._getframe(1)
    found = {"by": "publish()", "program": " ".join([os.path.basename(sys.argv[0]), *sys.argv[1:2]])}  # noqa: PTH119
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        if "caller" not in found and module.partition(".")[0] not in _NOT_CALLERS:
            found["caller"] = f"{module}.{frame.f_code.co_qualname}, line {frame.f_lineno}"
        if module in _DJANGO_TASKS and frame.f_code.co_name in ("call", "acall"):
            found["task"] = str(getattr(frame.f_locals.get("self"), "module_path", "unknown"))
            break
        frame = frame.f_back
    task = getattr(sys.modules.get("celery"), "current_task", None)  # a proxy, false outside of a task
    if task:
        found["task"] = str(task.name)
    return found
