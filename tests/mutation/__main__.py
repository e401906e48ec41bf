"""`python -m tests.mutation`: change one place of a module after the other, and run the unit tests that reach it.

The unit tests of the module's package are collected, and run once without a mutation to learn which functions each of
them calls. Each mutant runs in a forked process, which replaces the code of the changed function and runs the tests
that call it, the fastest first. A mutant is killed if a test fails, or if the tests do not end in time. Prints the
survivors. Exits with 1 if fewer than `--at-least` percent are killed, and with 2 if a test fails without a mutation.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import pytest

from tests.mutation import mutations, runs

ROOT = Path(__file__).resolve().parents[2]
RECOVERY = (
    "hub.attempts",
    "hub.connections",
    "hub.history_pages",
    "hub.pacing",
    "hub.recovery",
    "sse.cursors",
    "sse.recovery",
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument(
        "module", nargs="*", help="such as protocol.recovery; all of protocol and of recovery by default"
    )
    parser.add_argument("--sample", type=int, help="so many mutants of each module, chosen at random")
    parser.add_argument("--seed", type=int, default=1, help="of the sample (1)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--at-least", type=float, default=95.0, metavar="PERCENT", help="(95)")
    parser.add_argument("--tests", nargs="*", metavar="FILE", help="instead of the tests of the modules' packages")
    options = parser.parse_args()
    os.chdir(ROOT)
    every = [f"protocol.{file.stem}" for file in sorted((ROOT / "apps/fanfare/protocol").glob("[!_]*.py"))]
    modules = options.module or [*RECOVERY, *every]
    chosen = {
        f"fanfare.{module}": mutations.sampled(path_of(module).read_text(), options.sample, options.seed)
        for module in modules
    }
    tests = options.tests or sorted({f"tests/unit/{module.partition('.')[0]}" for module in modules})
    check = runs.Check(chosen, options.jobs)
    arguments = ["-qq", "-s", "--assert=plain", "-p", "no:cacheprovider", "-p", "no:xdist"]
    status = pytest.main([*arguments, *tests], plugins=[check])
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        return 2
    if check.failed:
        print("Without a mutation, these tests fail:", *check.failed, sep="\n", file=sys.stderr)
        return 2
    killed = total = 0
    print("| Module | Mutants | Killed |\n|---|--:|--:|")
    for name, mutants in chosen.items():
        died = len(mutants) - len(check.survivors[name])
        killed, total = killed + died, total + len(mutants)
        print(f"| {name.removeprefix('fanfare.')} | {len(mutants)} | {died} |")
    share = 100 * killed / max(total, 1)
    print(f"\n{killed} of {total} killed: {share:.1f} %. Survivors:")
    for name in chosen:
        for mutant in sorted(check.survivors[name]):
            print(f"{name.removeprefix('fanfare.')}, {mutant}")
    return 0 if share >= options.at_least else 1


def path_of(module: str) -> Path:
    return ROOT / "apps/fanfare" / Path(*module.split(".")).with_suffix(".py")


if __name__ == "__main__":
    sys.exit(main())
