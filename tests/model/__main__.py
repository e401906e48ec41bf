"""`python -m tests.model explore` or `simulate`. Exits with 1 if an invariant is broken."""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
import logging
import os
import sys
import time

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")

from tests.model import explore
from tests.model.deployment import Bounds


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.model", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    every = commands.add_parser("explore", help="every order of every action up to a number of them")
    every.add_argument("--depth", type=int, default=7, help="actions (7)")
    for name, default in (("workers", 2), ("clients", 1), ("events", 2), ("kept", 1), ("faults", 1)):
        every.add_argument(f"--{name}", type=int, default=default, help=f"({default})")
    for name in ("streams", "moves"):
        every.add_argument(f"--{name}", type=int, default=0, help="(0)")
    every.add_argument("--stages", action="store_true", help="workers go over to another store in stages")
    some = commands.add_parser("simulate", help="random runs")
    some.add_argument("--seeds", type=int, default=1_000, help="how many (1000)")
    some.add_argument("--first", type=int, default=0, help="the first seed (0)")
    some.add_argument("--stages", action="store_true", help="workers go over to another store in stages")
    some.add_argument("--jobs", type=int, default=1, help="processes (1)")
    some.add_argument("--seed", type=int, help="only this one")
    options = parser.parse_args()
    logging.disable()  # the store fails in most runs
    if options.command == "explore":
        chosen = ("workers", "clients", "events", "kept", "faults", "streams", "moves", "stages")
        bounds = Bounds(**{name: getattr(options, name) for name in chosen})
        return _report(explore.explore(bounds, options.depth, _progress), str(bounds))
    began = time.monotonic()
    seeds = range(options.first, options.first + options.seeds) if options.seed is None else [options.seed]
    with concurrent.futures.ProcessPoolExecutor(options.jobs) as pool:
        simulate = functools.partial(explore.simulate, bounds=explore.MOVING if options.stages else None)
        for seed, found in zip(seeds, pool.map(simulate, seeds, chunksize=50), strict=True):
            if found.violation:
                pool.shutdown(wait=False, cancel_futures=True)
                return _report(found, f"seed {seed}")
    seconds = time.monotonic() - began
    print(f"{len(seeds)} seeds, {explore.LENGTH} actions each: no invariant is broken ({seconds:.0f} s)")
    return 0


def _progress(explored: explore.Explored) -> None:
    print(f"{explored.depth} actions: {explored.runs} runs, {explored.states} states", file=sys.stderr, flush=True)


def _report(found: explore.Explored, what: str) -> int:
    if not found.violation:
        print(f"{what}, {found.depth} actions: {found.runs} runs, {found.states} states: no invariant is broken")
        return 0
    print(f"{what}: {found.violation}")
    for action in found.actions:
        print("   ", *action)
    return 1


if __name__ == "__main__":
    sys.exit(main())
