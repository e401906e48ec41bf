"""The figures as Markdown tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from tests.load import bars, figures, subjects
from tests.load.rows import latency


def fanout_table(found: figures.Figures) -> str:
    rivals = [found.cpu_us(key) for key in found.fanout if key.subject == subjects.STOCK]
    rows = []
    for key, samples in found.fanout.items():
        ratio = f"{min(rivals) / found.cpu_us(key):.0f}" if rivals else "—"
        rows.append(
            (
                f"{key.subject}: {key.way}",
                _spread(figures.spread(samples, lambda sample: sample.cpu_us), 2),
                _spread(figures.spread(samples, lambda sample: sample.per_second / 1e3), 0),
                _percent(figures.spread(samples, lambda sample: sample.server_busy).median),
                _percent(figures.spread(samples, lambda sample: sample.others_busy).median),
                _percent(figures.spread(samples, lambda sample: sample.client_busy).median),
                ratio,
            )
        )
    head = (
        "server",
        "CPU µs per delivery",
        "1,000 deliveries/s",
        "server's share of its core",
        "others' share of it",
        "client's core",
        "times less CPU than stock",
    )
    return _table(head, rows)


def latency_table(found: figures.Figures) -> str:
    rows = []
    for key, samples in found.latency.items():
        behind = max(sample.behind for sample in samples)
        if behind:
            cells = [f"does not keep up: {behind} events behind at the end"] + ["—"] * 2
        else:
            spreads = (
                figures.spread(samples, lambda sample: sample.p50),
                figures.spread(samples, lambda sample: sample.p99),
                figures.spread(samples, lambda sample: sample.worst),
            )
            cells = [_spread(one.scaled(1e3), 1) for one in spreads]
        rows.append((f"{key.subject}: {key.way}", *cells))
    return _table(("server", "p50 ms", "p99 ms", "worst ms"), rows)


def verdict_list(verdicts: Sequence[bars.Verdict]) -> str:
    if not verdicts:
        return "No bar was judged: its figures were not measured."
    return "\n".join(f"- {'reached' if verdict.reached else 'MISSED'}: {verdict.text}" for verdict in verdicts)


LATENCY_TITLE = f"Latency at {latency.PER_SECOND} events/s, from the moment an event is due to each receipt"


def _spread(value: figures.Spread, digits: int) -> str:
    if not math.isfinite(value.median):
        return "—"
    return f"{value.median:,.{digits}f} ({value.least:,.{digits}f}-{value.most:,.{digits}f})"


def _percent(share: float) -> str:
    return f"{share:.0%}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
