"""Run the benchmark and print its tables.

Ends with 1 where a bar is missed or this project's server failed, with 2 where nothing could be measured.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from pathlib import Path

from tests.load import bars, errors, figures, machine, picture, report, rows, subjects

SPARE_FILES = 512  # besides one for each connection


def main() -> int:
    options = _options()
    started = time.monotonic()
    try:
        cores = machine.cores()
        chosen = _chosen(options.subject)
        plan = rows.Plan(cores, options.subscribers, options.crowd, options.seconds, options.calm_seconds)
        machine.allow_files(max(plan.subscribers, plan.crowd) + SPARE_FILES)
        heading = _heading(options, chosen, cores)
        print(heading, flush=True)
        found = figures.Figures()
        with tempfile.TemporaryDirectory(prefix="fanfare-load-") as folder, machine.pinned(cores.client):
            _measure_all(options, chosen, plan, Path(folder), found)
    except errors.Unsuited as error:
        _note(str(error))
        return 2
    for row in options.row:
        if found.keys(row.NAME):
            print(f"\n### {row.TITLE}\n\n{report.row_table(row, found)}")
    print(f"\n### Bars\n\n{report.verdict_list(found)}\n\nTook {(time.monotonic() - started) / 60:.1f} minutes.")
    if options.picture:
        options.picture.write_text(picture.drawn(found, heading.splitlines()[0].lstrip("- ")))
    if not found.samples:
        return 2
    ours_failed = any(name in where for where in found.failures for name in subjects.OURS)
    return 1 if ours_failed or not all(verdict.reached for verdict in bars.verdicts(found)) else 0


def _measure_all(
    options: argparse.Namespace, chosen: list[subjects.Subject], plan: rows.Plan, folder: Path, found: figures.Figures
) -> None:
    """Rivals run beside each other in time, and each has a fresh process for each row. Who fails is not asked again."""
    places = (folder / str(number) for number in itertools.count())
    for run, row, subject in itertools.product(range(1, options.runs + 1), options.row, chosen):
        where = f"{row.NAME}, {subject.name}"
        if where in found.failures or not row.takes(subject):
            continue
        _note(f"run {run} of {options.runs}: {where}")
        place = next(places)
        place.mkdir()
        try:
            for way, sample, saturates in row.measure(subject, place, plan):
                found.add(figures.Key(row.NAME, subject.name, way, saturates), sample)
                _note(f"  {way}: " + ", ".join(f"{one.head} {one.value(sample):,.2f}" for one in row.COLUMNS))
        except (errors.LoadError, OSError, AssertionError) as error:  # the test harness asserts what it needs
            found.failures[where] = str(error).partition("\n")[0]
            _note("\n".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", [])]))


def _options() -> argparse.Namespace:
    known = {row.NAME: row for row in rows.all_rows()}
    parser = argparse.ArgumentParser(prog="python -m tests.load", description=__doc__)
    parser.add_argument("row", nargs="*", metavar="ROW", help=f"of {', '.join(known)}; all by default")
    parser.add_argument("--runs", type=int, default=3, help="samples of each figure (3)")
    parser.add_argument("--subscribers", type=int, default=1_000, help="of the one channel (1000)")
    parser.add_argument("--crowd", type=int, default=10_000, help="the same in the rows that have many (10000)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of a sample at saturation (2)")
    parser.add_argument("--calm-seconds", type=float, default=4.0, help="of a sample of the latency (4)")
    parser.add_argument("--subject", action="append", default=[], help="part of the name of a server; all by default")
    parser.add_argument("--picture", type=Path, help="where to write a picture of the figures (SVG)")
    options = parser.parse_args()
    unknown = [name for name in options.row if name not in known]
    if unknown:
        parser.error(f"unknown rows: {', '.join(unknown)}; there are {', '.join(known)}")
    options.row = [row for name, row in known.items() if name in (options.row or known)]
    return options


def _chosen(names: list[str]) -> list[subjects.Subject]:
    chosen = []
    for subject in subjects.all_subjects():
        if names and not any(name.lower() in subject.name.lower() for name in names):
            continue
        reason = subject.absent()
        if reason is None:
            chosen.append(subject)
        else:
            _note(f"{subject.name} is left out: {reason}")
    if not chosen:
        raise errors.Unsuited(f"No server is called {' or '.join(names)}")
    return chosen


def _heading(options: argparse.Namespace, chosen: list[subjects.Subject], cores: machine.Cores) -> str:
    lines = [
        f"Machine: {machine.describe()}.",
        f"The server on core {cores.server}; client and publisher on core {cores.client}: {machine.versions()}, epoll.",
        f"{options.subscribers:,} subscribers of one channel, {options.runs} runs, medians with the range.",
        *(f"{subject.name}: {subject.versions()}." for subject in chosen),
    ]
    return "\n".join(f"- {line}" for line in lines)


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
