"""The figures as Markdown."""

from __future__ import annotations

import collections

from tests.kills import rounds

HEAD = (
    "client",
    "channel",
    "connections",
    "resets",
    "came back on another worker",
    "missing in silence",
    "missing and told",
    "came again",
    "the oldest of them",
    "out of order",
    "verdict",
)


def text(result: rounds.Result) -> str:
    summary = (
        f"{result.published:,} events acknowledged; calls that the publisher tried again: "
        f"{_counted(result.retries) or 'none'}; the longest took {result.longest_s:.1f} s. "
        f"Failures: {_counted(result.done) or 'none'}."
    )
    broken = [f"- BROKEN: {fault}" for fault in result.faults]
    return "\n\n".join([f"### {result.round.title}", summary, table(result.rows), *broken])


def table(rows: list[rounds.Row]) -> str:
    lines = [HEAD, ("---",) * len(HEAD), *map(_cells, rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cells(row: rounds.Row) -> tuple[str, ...]:
    found = row.findings
    return (
        row.kind,
        f"`{row.channel}`",
        str(found.connections),
        str(row.resets),
        str(row.moves),
        f"{found.silent:,}",
        _counted(found.told) or "0",
        f"{found.repeated:,}",
        f"{found.oldest_s:.1f} s" if found.repeated else "—",
        str(found.disordered),
        "BROKEN" if row.faults else "as promised",
    )


def _counted(counted: collections.Counter[str]) -> str:
    return ", ".join(f"{count:,} {what}" for what, count in counted.most_common())
