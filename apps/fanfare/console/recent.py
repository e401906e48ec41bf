"""The last hour of one worker, as samples of ten seconds."""

from __future__ import annotations

import asyncio
import collections
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from fanfare.console import reports
from fanfare.runtime import histograms

EVERY_S: Final = 10.0
SAMPLES: Final = 360  # an hour; about 300 kB
DELIVERY: Final = "delivery_seconds"

# Counters that start so are refusals; the other tuple is what an operator should look into.
REFUSALS: Final = (
    "pusher.refused.",
    "pusher.subscription_refused.",
    "pusher.sign_in_refused.",
    "pusher.client_event_rejected.",
    "pusher.history_refused.",
    "api.refused.",
    "sse.refused.",
    "http.refused.",
)
TROUBLES: Final = (
    *REFUSALS,
    "closed.slow",
    "engine.reaped",
    "gaps.",
    "recoveries.lost.",
    "api.failed",
    "console.failed",
    "callbacks.failed",
    "background.failed",
    "webhooks.refused",
    "webhooks.failed",
    "webhooks.dropped",
    "http.evicted.",
)

Values = Mapping[str, int | float]


class Sample(NamedTuple):
    """`at`: Unix time of its end. Numbers of events and bytes are those of these ten seconds; connections, channels,
    lag and memory are as they were at the end. `delivery`: the buckets of the latency histogram."""

    at: float
    connections: float
    channels: float
    published: float
    deliveries: float
    delivered_bytes: float
    refused: float
    behind: float
    memory: float
    delivery: tuple[float, ...]


def grown(now: Values, before: Values) -> dict[str, float]:
    """What the counters have grown by, without those that have not."""
    return {name: value - before.get(name, 0) for name, value in now.items() if value > before.get(name, 0)}


def total(values: Values, prefixes: tuple[str, ...]) -> float:
    return sum(value for name, value in values.items() if name.startswith(prefixes))


class Recent:
    """`counters` and `gauges` are those of the worker's report."""

    def __init__(self, counters: Callable[[], reports.Values], gauges: Callable[[], reports.Values]) -> None:
        self._counters = counters
        self._gauges = gauges
        self._before: reports.Values = {}
        self._samples: collections.deque[Sample] = collections.deque(maxlen=SAMPLES)
        self._troubles: collections.deque[dict[str, float]] = collections.deque(maxlen=SAMPLES)

    async def run(self) -> None:
        """Take samples until the task is cancelled. The first one includes what the worker counted as it started, such
        as the removal of a dead worker that it replaces."""
        while True:
            await asyncio.sleep(EVERY_S)
            self.sample(time.time())

    def sample(self, now: float) -> None:
        """Add a sample of the time since the one before."""
        counters, gauges = self._counters(), self._gauges()
        delta, self._before = grown(counters, self._before), counters
        buckets, _ = histograms.buckets(delta, DELIVERY)
        counts = [count for _, count in buckets]
        self._samples.append(
            Sample(
                round(now, 1),
                gauges.get("connections.now", 0),
                gauges.get("channels.now", 0),
                delta.get("published", 0),
                delta.get("deliveries", 0),
                delta.get("delivered_bytes", 0),
                total(delta, REFUSALS),
                gauges.get("engine.behind", 0),
                gauges.get("memory.bytes", 0),
                tuple(after - before for before, after in zip([0, *counts], counts, strict=False))
                if any(counts)
                else (),
            )
        )
        self._troubles.append({name: value for name, value in delta.items() if name.startswith(TROUBLES)})

    def samples(self, after: float = 0.0) -> list[Sample]:
        """Those that ended after a Unix time, oldest first."""
        return [sample for sample in self._samples if sample.at > after]

    def troubles(self, seconds: float) -> dict[str, float]:
        """The counters of `TROUBLES` that grew in the last `seconds`, the current sample included."""
        found: collections.Counter[str] = collections.Counter()
        newest = list(self._troubles)[-max(1, int(seconds / EVERY_S)) :]
        current = {name: value for name, value in self._counters().items() if name.startswith(TROUBLES)}
        for one in (*newest, grown(current, self._before)):
            found.update(one)
        return dict(found)


def as_columns(samples: list[Sample]) -> dict[str, Any]:
    """For a chart, and half as long in JSON."""
    return {name: [getattr(sample, name) for sample in samples] for name in Sample._fields}
