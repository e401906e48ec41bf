"""The figures as Markdown."""

from __future__ import annotations

import collections

from tests.kills import rounds

HEAD = (
    "client",
    "channel",
    "connections",
    "resets",
    "reconnects to another worker",
    "unreported losses",
    "reported losses",
    "duplicates",
    "oldest duplicate",
    "out of order",
    "ghosts",
    "verdict",
)


def text(result: rounds.Result) -> str:
    summary = (
        f"{result.published:,} events acknowledged; retried calls: "
        f"{_counted(result.retries) or 'none'}; the longest call took {result.longest_s:.1f} s. "
        f"Failures: {_counted(result.done) or 'none'}."
    )
    broken = [f"- BROKEN: {fault}" for fault in result.faults]
    return "\n\n".join([f"### {result.title}", summary, table(result.rows), *broken])


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
        f"{found.unreported:,}",
        _counted(found.reported) or "0",
        f"{found.duplicates:,}",
        f"{found.oldest_duplicate_s:.1f} s" if found.duplicates else "—",
        str(found.out_of_order),
        str(found.ghosts),
        "BROKEN" if row.faults else "guarantees kept",
    )


def _counted(counted: collections.Counter[str]) -> str:
    return ", ".join(f"{count:,} {what}" for what, count in counted.most_common())
