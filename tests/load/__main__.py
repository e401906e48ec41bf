"""Run the benchmark and print its tables.

Exits with 1 if a target is missed or Fanfare failed, with 2 if nothing could be measured.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from pathlib import Path

from tests.load import errors, figures, machine, picture, report, rows, subjects, targets

SPARE_FILES = 512  # open files besides the connections


def main() -> int:
    options = _options()
    started = time.monotonic()
    try:
        cores = machine.cores()
        chosen = _chosen(options.subject)
        plan = rows.Plan(
            cores,
            options.subscribers,
            options.crowd,
            options.seconds,
            options.latency_seconds,
            connections=options.connections,
            rate=options.rate,
            console_seconds=options.console_seconds,
        )
        machine.allow_files(max(plan.subscribers, plan.crowd, plan.connections) + SPARE_FILES)
        heading = _heading(options, chosen, cores)
        print(heading, flush=True)
        found = figures.Figures()
        with tempfile.TemporaryDirectory(prefix="fanfare-load-") as folder, machine.pinned(cores.client):
            _measure_all(options, chosen, plan, Path(folder), found, heading)
    except errors.Unsuited as error:
        _note(str(error))
        return 2
    for row in options.row:
        if found.keys(row.NAME):
            print(f"\n### {row.TITLE}\n\n{report.row_table(row, found)}")
    print(f"\n### Targets\n\n{report.verdict_list(found)}\n\nTook {(time.monotonic() - started) / 60:.1f} minutes.")
    if options.picture:
        options.picture.write_text(picture.drawn(found, heading.splitlines()[0].lstrip("- ")))
    if not found.samples:
        return 2
    ours_failed = any(name in where for where in found.failures for name in subjects.OURS)
    return 1 if ours_failed or not all(verdict.reached for verdict in targets.verdicts(found)) else 0


def _measure_all(
    options: argparse.Namespace,
    chosen: list[subjects.Subject],
    plan: rows.Plan,
    folder: Path,
    found: figures.Figures,
    heading: str,
) -> None:
    """Measure every row of every subject in each run. A subject that fails a row is not measured in it again.

    The file of `--raw` is written after each subject, so that a run that is ended keeps its samples.
    """
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
        except (errors.LoadError, OSError, AssertionError) as error:  # the test harness raises AssertionError
            found.failures[where] = str(error).partition("\n")[0]
            _note("\n".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", [])]))
        if options.raw:
            options.raw.write_text(report.raw(heading, found))


def _options() -> argparse.Namespace:
    known = {row.NAME: row for row in rows.all_rows()}
    parser = argparse.ArgumentParser(prog="python -m tests.load", description=__doc__)
    parser.add_argument("row", nargs="*", metavar="ROW", help=f"{', '.join(known)}; all by default")
    parser.add_argument("--runs", type=int, default=3, help="samples per figure (3)")
    parser.add_argument("--subscribers", type=int, default=1_000, help="subscribers of the channel (1000)")
    parser.add_argument("--crowd", type=int, default=10_000, help="connections in the rows crowd and idle (10000)")
    parser.add_argument("--seconds", type=float, default=2.0, help="duration of a sample at saturation (2)")
    parser.add_argument("--latency-seconds", type=float, default=4.0, help="duration of a latency sample (4)")
    parser.add_argument("--connections", type=int, default=5_000, help="connections in the row console (5000)")
    parser.add_argument("--rate", type=float, default=5_000, help="events per second in the row console (5000)")
    parser.add_argument("--console-seconds", type=float, default=5.0, help="duration of a turn in the row console (5)")
    parser.add_argument(
        "--subject", action="append", default=[], help="servers whose name contains this; all by default"
    )
    parser.add_argument("--raw", type=Path, help="write all samples as JSON to this path")
    parser.add_argument("--picture", type=Path, help="write the figures as an SVG picture to this path")
    options = parser.parse_args()
    unknown = [name for name in options.row if name not in known]
    if unknown:
        parser.error(f"unknown rows: {', '.join(unknown)}; known rows: {', '.join(known)}")
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
            _note(f"{subject.name} is skipped: {reason}")
    if not chosen:
        raise errors.Unsuited(f"no server has a name with {' or '.join(names)}")
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
