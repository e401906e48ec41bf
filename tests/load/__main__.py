"""Run the benchmark and print its tables. Ends with 1 where a bar is missed, with 2 where it could not run."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.load import bars, errors, figures, machine, report, rooms, subjects
from tests.load.rows import fanout, latency

ROWS = ("fanout", "latency")
SPARE_FILES = 256  # besides one for each subscriber


def main() -> int:
    options = _options()
    try:
        cores = machine.cores()
        machine.allow_files(options.subscribers + SPARE_FILES)
        chosen = _chosen(options.subject)
        print(_heading(options, chosen, cores), flush=True)
        found = figures.Figures()
        with tempfile.TemporaryDirectory(prefix="fanfare-load-") as folder, machine.pinned(cores.client):
            for run in range(1, options.runs + 1):
                for number, subject in enumerate(chosen):
                    _note(f"run {run} of {options.runs}: {subject.name}")
                    place = Path(folder) / f"{run}-{number}"
                    place.mkdir()
                    with subject.running(place, cores.server) as running:
                        _measure(subject, running, options, found)
    except (errors.LoadError, OSError, AssertionError) as error:  # the test harness asserts what it needs
        _note("\n".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", [])]))
        return 2
    verdicts = bars.verdicts(found)
    _print(found, verdicts, options)
    return 0 if all(verdict.reached for verdict in verdicts) else 1


def _measure(
    subject: subjects.Subject, running: subjects.Running, options: argparse.Namespace, found: figures.Figures
) -> None:
    with rooms.opened(running, options.subscribers) as room:
        ways = running.ways()
        if "fanout" in options.row:
            for name, way in ways.items():
                with room.publisher(way) as publisher:
                    sample = fanout.measure(room, publisher, way.window, running.pid, options.seconds)
                found.fanout.setdefault(figures.Key(subject.name, name, way.saturates), []).append(sample)
                _note(f"  {name}: {sample.cpu_us:.2f} µs, {sample.per_second:,.0f}/s")
        if "latency" in options.row:
            name, way = next(iter(ways.items()))
            with room.publisher(way) as publisher:
                calm = latency.measure(room, publisher, options.calm_seconds)
            found.latency.setdefault(figures.Key(subject.name, name), []).append(calm)
            _note(f"  calm: p50 {calm.p50 * 1e3:.1f} ms, p99 {calm.p99 * 1e3:.1f} ms, behind {calm.behind}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.load", description=__doc__)
    parser.add_argument("row", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}; all by default")
    parser.add_argument("--runs", type=int, default=3, help="samples of each figure (3)")
    parser.add_argument("--subscribers", type=int, default=1_000, help="of the one channel (1000)")
    parser.add_argument("--seconds", type=float, default=3.0, help="of publishing, for a sample of the fan-out (3)")
    parser.add_argument("--calm-seconds", type=float, default=5.0, help="the same for the latency (5)")
    parser.add_argument("--subject", action="append", default=[], help="part of the name of a server; all by default")
    options = parser.parse_args()
    options.row = options.row or list(ROWS)
    unknown = set(options.row) - set(ROWS)
    if unknown:
        parser.error(f"unknown rows: {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
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


def _print(found: figures.Figures, verdicts: list[bars.Verdict], options: argparse.Namespace) -> None:
    if found.fanout:
        print(f"\n### Fan-out at saturation, {options.seconds:g} s a run\n\n{report.fanout_table(found)}")
    if found.latency:
        print(f"\n### {report.LATENCY_TITLE}, {options.calm_seconds:g} s a run\n\n{report.latency_table(found)}")
    print(f"\n### Bars\n\n{report.verdict_list(verdicts)}")


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
