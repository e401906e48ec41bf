"""Histograms of durations, cheap enough for each read and each commit.

The counts of a histogram are counters like any others: `Histogram.counters` names them `NAME.BOUND`, where BOUND is the
upper bound of a bucket in seconds, and `NAME.sum`. So a report carries them, sums over workers are right, and /metrics
builds a Prometheus histogram from them.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Final

# A commit takes 30 µs without contention, a delivery some milliseconds. 30 s: longer than any timeout.
BOUNDS_S: Final = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
)  # fmt: skip
_LABELS: Final = (*[f"{bound:g}" for bound in BOUNDS_S], "inf")
SUM: Final = "sum"


class Histogram:
    """`observe` costs about 0.2 µs."""

    __slots__ = ("_counts", "_sum_s")

    def __init__(self) -> None:
        self._counts = [0] * len(_LABELS)  # not cumulative
        self._sum_s = 0.0

    def observe(self, seconds: float, count: int = 1) -> None:
        """`count` durations of this length. A negative one, from a clock that was set back, counts as 0."""
        seconds = max(seconds, 0.0)
        self._counts[bisect_left(BOUNDS_S, seconds)] += count
        self._sum_s += seconds * count

    def observe_since(self, began: Sequence[float], now: float | None = None, per_second: float = 1) -> None:
        """Durations from these times to `now`, by one clock, the monotonic one by default. `per_second`: the unit of
        the times, 1000 for milliseconds. Does nothing if the first time is 0, which means that the times are not known.

        The cost depends on the number of buckets, and hardly on the number of times.
        """
        if not began or not began[0]:
            return
        if now is None:
            now = time.monotonic()
        if len(began) == 1:
            seconds = max((now - began[0]) / per_second, 0.0)
            self._counts[bisect_left(BOUNDS_S, seconds)] += 1
            self._sum_s += seconds
            return
        times = sorted(began)
        if times[-1] > now:
            times = [min(one, now) for one in times]
        self._sum_s += (now * len(times) - sum(times)) / per_second
        first = 0
        while first < len(times):  # the longest durations first, one bucket at a time
            bucket = bisect_left(BOUNDS_S, (now - times[first]) / per_second)
            after = len(times)
            if bucket:
                after = bisect_left(times, now - BOUNDS_S[bucket - 1] * per_second, first + 1)
            self._counts[bucket] += after - first
            first = after

    def counters(self, name: str) -> dict[str, int | float]:
        """The buckets that are not empty, and the sum. Empty if nothing was observed."""
        found: dict[str, int | float] = {
            f"{name}.{label}": count for label, count in zip(_LABELS, self._counts, strict=True) if count
        }
        if found:
            found[f"{name}.{SUM}"] = self._sum_s
        return found


def buckets(counters: Mapping[str, int | float], name: str) -> tuple[list[tuple[str, float]], float]:
    """The cumulative buckets of a histogram among `counters`, as Prometheus has them, and the sum of the durations.

    A bound that only another release knows counts into the next larger one of this release.
    """
    counts = [0.0] * len(_LABELS)
    prefix = f"{name}."
    sum_s = 0.0
    for key, value in counters.items():
        if not key.startswith(prefix):
            continue
        label = key.removeprefix(prefix)
        if label == SUM:
            sum_s += value
        else:
            counts[bisect_left(BOUNDS_S, float(label))] += value
    total = 0.0
    cumulative = []
    for label, count in zip(_LABELS, counts, strict=True):
        total += count
        cumulative.append(("+Inf" if label == "inf" else label, total))
    return cumulative, sum_s


def quantile(counters: Mapping[str, int | float], name: str, fraction: float) -> float | None:
    """The duration in seconds that this fraction of the observations does not exceed, interpolated within its bucket.

    None without observations. Beyond the largest bound: that bound.
    """
    cumulative, _ = buckets(counters, name)
    total = cumulative[-1][1]
    if not total:
        return None
    wanted = fraction * total
    lower, below = 0.0, 0.0
    for bound, (_, count) in zip((*BOUNDS_S, math.inf), cumulative, strict=True):
        if count >= wanted and count > below:
            return lower if math.isinf(bound) else lower + (bound - lower) * (wanted - below) / (count - below)
        lower, below = bound, count
    return BOUNDS_S[-1]
