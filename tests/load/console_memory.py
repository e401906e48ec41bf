"""`python -m tests.load.console_memory`: the memory of a worker while console pages are open.

Clients get events at a fixed rate, and 50 console pages are open: overviews, and tails with eight filters. Prints the
memory of every minute, its growth over the last two thirds of the time, and the events a second that came.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.harness import deployments
from tests.load import machine, rows
from tests.load.rows import console
from tests.load.subjects import fanfare

PAGES = console.MANY
SPARE_FILES = 512
STEP_S = 10.0  # between two samples


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.load.console_memory", description=__doc__)
    parser.add_argument("--minutes", type=float, default=15.0, help="(15)")
    parser.add_argument("--connections", type=int, default=1_000, help="clients (1000)")
    parser.add_argument("--rate", type=float, default=500, help="events per second (500)")
    options = parser.parse_args()
    cores = machine.cores()
    plan = rows.Plan(cores, connections=options.connections, rate=options.rate)
    machine.allow_files(options.connections + len(PAGES) + SPARE_FILES)
    samples, rate = [], 0.0
    with tempfile.TemporaryDirectory(prefix="fanfare-load-") as folder, machine.pinned(cores.client):
        for number, (at_s, memory, published) in enumerate(_samples(Path(folder), plan, options.minutes * 60)):
            samples.append((at_s, memory))
            rate = published / max(at_s, 1.0)
            if number % 6 == 0:
                print(f"{at_s / 60:4.1f} min  {memory / 1e6:6.1f} MB", flush=True)
    late = [(at_s, memory) for at_s, memory in samples if at_s >= options.minutes * 20]
    growth = statistics.linear_regression(*zip(*late, strict=True)).slope * 60
    least, most = (one(memory for _, memory in late) / 1e6 for one in (min, max))
    print(f"Last two thirds: {least:.1f} to {most:.1f} MB, {growth / 1e3:+.0f} kB a minute.")
    print(f"{rate:,.0f} events a second.")


def _samples(folder: Path, plan: rows.Plan, seconds: float) -> Iterator[tuple[float, float, int]]:
    """Seconds since the pages were opened, bytes of the worker, and events so far."""
    with fanfare.Fanfare().running(folder, plan.cores.server) as running:
        deployment: deployments.Deployment = running._deployment  # type: ignore[attr-defined]
        token = deployment.shell(console.TOKEN).rpartition("TOKEN ")[2].strip()
        with console.loaded(running, plan) as load, console.pages_open(running, PAGES, token) as pages:
            load.pages = pages
            began = time.monotonic()
            while (at_s := time.monotonic() - began) < seconds:
                yield at_s, machine.resident_bytes(running.pid), load.published
                load.run(STEP_S)


if __name__ == "__main__":
    main()
