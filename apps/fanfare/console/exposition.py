"""The figures of all workers in the text formats of Prometheus.

`metrics` imports it when a scraper asks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, exposition
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from fanfare.console import metrics, reports
from fanfare.runtime import histograms


class _Families(Collector):
    def __init__(self, collected: reports.Collection) -> None:
        self._collected = collected

    def collect(self) -> Iterator[Metric]:
        reported = self._collected.reports
        yield _gauge("workers", "Workers that answered.", len(reported))
        yield _gauge("workers_expected", "Workers that the engine knows.", self._collected.expected)
        versions = GaugeMetricFamily("fanfare_build_info", "Workers by version.", labels=["version"])
        for version in sorted({report.version for report in reported}):
            versions.add_metric([version], sum(report.version == version for report in reported))
        yield versions
        for level in metrics.GAUGES:
            values = [report.gauges[level.source] for report in reported if level.source in report.gauges]
            if not values:
                continue
            if level.source == "engine.ok":
                yield _gauge(level.name, level.help, min(values))
            else:
                yield _gauge(level.name, level.help, max(values) if level.shared else sum(values))
        yield _jobs(self._collected.gauges)
        counted = self._collected.counters
        for durations in metrics.HISTOGRAMS:
            buckets, sum_s = histograms.buckets(counted, durations.source)
            yield HistogramMetricFamily(f"fanfare_{durations.name}", durations.help, buckets=buckets, sum_value=sum_s)
        sources = tuple(f"{durations.source}." for durations in metrics.HISTOGRAMS)
        yield from counters({name: value for name, value in counted.items() if not name.startswith(sources)})


def _jobs(gauges: Mapping[str, int | float]) -> Metric:
    """The background jobs, whose names the code declares."""
    metric = GaugeMetricFamily(
        "fanfare_jobs", "Workers by background job and its state there.", labels=["job", "state"]
    )
    for name, value in sorted(gauges.items()):
        if name.startswith(metrics.JOBS):
            metric.add_metric(name.removeprefix(metrics.JOBS).rsplit(".", 1), value)
    return metric


def counters(values: Mapping[str, int | float]) -> Iterator[Metric]:
    """The metrics of named counters. A counter belongs to the first family whose `source` is its name or prefix."""
    found: dict[metrics.Family, list[tuple[str, float]]] = {family: [] for family in (*metrics.COUNTERS, metrics.OTHER)}
    for name, value in sorted(values.items()):
        family = next((family for family in metrics.COUNTERS if family.has(name)), metrics.OTHER)
        found[family].append((name.removeprefix(family.source), value))
    for family, samples in found.items():
        if family.label and not samples:
            continue
        metric = CounterMetricFamily(
            f"fanfare_{family.name}", family.help, labels=[family.label] if family.label else None
        )
        for label, value in samples or [("", 0.0)]:
            metric.add_metric([label] if family.label else [], value)
        yield metric


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"fanfare_{name}", text, value=value)


def render(collected: reports.Collection, accept: str = "") -> tuple[bytes, str]:
    """The body and its content type, in the format that the scraper asks for."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(collected))
    encode, content_type = exposition.choose_encoder(accept)
    return encode(registry), content_type
