"""The figures as an SVG picture: a panel for each row that has a rival, a bar for each server.

The SVG has no scripts, and its colours follow the reader's light or dark theme, also when used as an image.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

from tests.load import figures, rows, subjects

WIDTH, MARGIN, GAP = 920, 24, 40
PANEL = (WIDTH - 2 * MARGIN - GAP) / 2
LABEL, VALUE = 112, 84  # px left and right of a bar
LINE, BAR = 23, 15
HEAD = 48  # px of a panel: its title and note
TITLE = 66

# A bar more than this many times as long as the next one is cut, so that the others stay distinguishable.
CUT = 4

STYLE = """
text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; fill: #1f2328 }
.page { fill: #ffffff } .small { font-size: 12px; fill: #59636e } .label { font-size: 13px }
.title { font-size: 20px; font-weight: 600 } .panel { font-size: 14px; font-weight: 600 }
.ours { fill: #0969da } .rival { fill: #b4bcc6 } .mine { font-weight: 600 } .cut { stroke: #ffffff; stroke-width: 3 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .page { fill: #0d1117 } .small { fill: #9198a1 }
  .ours { fill: #4493f8 } .rival { fill: #545d68 } .cut { stroke: #0d1117 }
}
"""


class Bar(NamedTuple):
    name: str
    value: float
    digits: int
    ours: bool


class Panel(NamedTuple):
    title: str
    note: str
    bars: Sequence[Bar]

    @property
    def height(self) -> float:
        return HEAD + LINE * len(self.bars)


class Shown(NamedTuple):
    """The column of a row that a panel shows: the compared one, or the one with this heading."""

    row: str
    title: str
    note: str
    column: str | None = None


SHOWN = (
    Shown("fanout", "CPU µs per delivery", "fan-out to 1,000 subscribers, at saturation; less is better"),
    Shown("latency", "Latency, p99 ms", "1,000 subscribers, 20 events/s; less is better"),
    Shown("small-rooms", "1,000 deliveries per CPU second", "2,000 presence channels of 5; more is better"),
    Shown("posts", "1,000 signed POST /events per CPU second", "no subscribers; more is better"),
    Shown("idle", "Memory of an idle connection, kB", "less is better"),
    Shown("idle", "1,000 connections accepted per CPU second", "more is better", "accepted per CPU second"),
)


def panels(found: figures.Figures) -> list[Panel]:
    """One panel per entry of SHOWN. It shows each server's first method: one event per request."""
    drawn = []
    known = {row.NAME: row for row in rows.all_rows()}
    for name, title, note, head in SHOWN:
        row = known[name]
        column = row.COMPARED if head is None else next(one for one in row.COLUMNS if one.head == head)
        scale, digits = (1e-3, 1) if title.startswith("1,000") else (1.0, column.digits)
        bars: list[Bar] = []
        for subject in dict.fromkeys(key.subject for key in found.keys(name)):
            value = found.median(found.keys(name, subject)[0], column) * scale
            if subject not in (subjects.FANFARE_OTHER, subjects.FANFARE_OPEN) and not math.isnan(value):
                bars.append(Bar(subject.partition(",")[0], value, digits, subject == subjects.FANFARE))
        if len(bars) > 1:
            drawn.append(Panel(title, note, bars))
    return drawn


def lengths(values: Sequence[float], most: float) -> list[tuple[float, bool]]:
    """The length of each bar, and whether it is cut at the end of the panel."""
    finite = sorted(value for value in values if math.isfinite(value))
    longest = finite[-1] if finite else 1.0
    for shorter, longer in itertools.pairwise(finite):
        if shorter and longer > CUT * shorter and shorter > finite[0]:
            longest = shorter * 1.25
            break
    return [(most, True) if value > longest else (max(1.5, value / longest * most), False) for value in values]


def drawn(found: figures.Figures, machine: str) -> str:
    """The whole picture. `machine`: one line that describes the machine."""
    shown = panels(found)
    columns: tuple[list[str], list[str]] = ([], [])
    bottoms = [float(TITLE), float(TITLE)]
    for panel in shown:
        side = 0 if bottoms[0] <= bottoms[1] else 1
        columns[side].extend(_panel(panel, MARGIN + side * (PANEL + GAP), bottoms[side]))
        bottoms[side] += panel.height + LINE
    height = max(bottoms) + LINE
    size, spoken = f'width="{WIDTH}" height="{height:g}"', f'role="img" aria-label="{escape(_spoken(shown))}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" {size} {spoken}>',
        f"<style>{STYLE}</style>",
        f'<rect class="page" width="{WIDTH}" height="{height:g}" rx="8"/>',
        _text(MARGIN, 36, "One core each, in one run, on one machine", "title"),
        *columns[0],
        *columns[1],
        _text(MARGIN, height - 16, machine, "small"),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _panel(panel: Panel, left: float, top: float) -> list[str]:
    lines = [_text(left, top + 14, panel.title, "panel"), _text(left, top + 32, panel.note, "small")]
    room = PANEL - LABEL - VALUE
    for number, (bar, (length, is_cut)) in enumerate(
        zip(panel.bars, lengths([bar.value for bar in panel.bars], room), strict=True)
    ):
        y, start = top + HEAD + number * LINE, left + LABEL
        lines.append(_text(start - 8, y + 12, bar.name, "label mine" if bar.ours else "label", anchor="end"))
        kind = "ours" if bar.ours else "rival"
        lines.append(f'<rect class="{kind}" x="{start:g}" y="{y:g}" width="{length:.1f}" height="{BAR}" rx="2"/>')
        if is_cut:
            x = start + length - 24
            lines.append(f'<path class="cut" d="M{x:g} {y + BAR + 2:g} l8 {-BAR - 4}"/>')
        value = f"{bar.value:,.{bar.digits}f}" if math.isfinite(bar.value) else "falls behind"
        lines.append(_text(start + length + 6, y + 12, value, "label mine" if bar.ours else "label"))
    return lines


def _spoken(shown: Sequence[Panel]) -> str:
    return " ".join(
        f"{panel.title}: " + ", ".join(f"{bar.name} {bar.value:,.{bar.digits}f}" for bar in panel.bars) + "."
        for panel in shown
    )


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(text)}</text>'
