"""The figures as Markdown: a table for each row, with the ratio to each rival, and the targets."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence

from tests.load import figures, rows, subjects, targets


def row_table(row: rows.Row, found: figures.Figures) -> str:
    keys = found.keys(row.NAME)
    columns = [column for column in row.COLUMNS if any(_is_known(found.spread(key, column)) for key in keys)]
    names = dict.fromkeys(key.subject for key in keys if key.subject not in subjects.OURS)
    head = ["server", *(column.head for column in columns), *(f"vs {_short(name)}" for name in names)]
    lines = [
        [
            f"{key.subject}: {key.way}",
            *(_cell(found.spread(key, column), column) for column in columns),
            *(_ratio(_against(found, row, key, name)) for name in names),
        ]
        for key in keys
    ]
    return _table(head, lines)


def verdict_list(found: figures.Figures) -> str:
    lines = [f"- {'reached' if one.reached else 'MISSED'}: {one.text}" for one in targets.verdicts(found)]
    lines += [f"- not judged: {text}" for text in targets.not_judged(found)]
    lines += [f"- FAILED: {where}: {why}" for where, why in found.failures.items()]
    return "\n".join(lines)


def raw(heading: str, found: figures.Figures) -> str:
    """All samples as JSON, in the order of the runs."""
    samples = [
        {**key._asdict(), "samples": [one._asdict() for one in several]} for key, several in found.samples.items()
    ]
    whole = {"heading": heading.splitlines(), "samples": samples, "failures": found.failures}
    return json.dumps(whole, indent=1) + "\n"


def _against(found: figures.Figures, row: rows.Row, key: figures.Key, rival: str) -> float:
    value = found.rival(row, rival, key.way)
    return math.nan if value is None else targets.times_better(row, found.median(key, row.COMPARED), value)


def _short(name: str) -> str:
    return name.partition(",")[0]


def _is_known(value: figures.Spread) -> bool:
    return not math.isnan(value.median)


def _cell(value: figures.Spread, column: rows.Column) -> str:
    if not math.isfinite(value.median):
        return "—"
    if column.percent:
        return f"{value.median:.0%}"
    low, high = f"{value.least:,.{column.digits}f}", f"{value.most:,.{column.digits}f}"
    middle = f"{value.median:,.{column.digits}f}"
    return middle if low == high else f"{middle} ({low}-{high})"


def _ratio(value: float) -> str:
    if not math.isfinite(value):
        return "—"
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *lines])
