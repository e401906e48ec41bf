"""`python -m tests.mutation`: change one place of a module after the other, and run its unit tests on each mutant.

Each mutant runs in a process of its own. A mutant is killed if a test fails, or if the tests do not end in time.
Prints the survivors. Exits with 1 if fewer than `--at-least` percent are killed.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import random
import signal
import sys
import time
import types
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.mutation import mutations

ROOT = Path(__file__).resolve().parents[2]
_PROTOCOL, _HUB = "tests/unit/protocol", "tests/unit/hub"
# The unit tests of each module, those that end soonest first.
TESTS: dict[str, tuple[str, ...]] = {
    "protocol.ack_tracker": (f"{_PROTOCOL}/test_ack_tracker.py", f"{_PROTOCOL}/test_page_sessions.py"),
    "protocol.page_sessions": (
        f"{_PROTOCOL}/test_page_sessions.py",
        f"{_PROTOCOL}/test_shared_tokens.py",
        f"{_PROTOCOL}/test_token_subscribes.py",
    ),
    "protocol.session_owners": (
        f"{_PROTOCOL}/test_session_owners.py",
        f"{_PROTOCOL}/test_shared_tokens.py",
        f"{_PROTOCOL}/test_page_sessions.py",
    ),
    "protocol.recovery": (
        f"{_PROTOCOL}/test_recovery.py",
        f"{_PROTOCOL}/test_token_subscribes.py",
        f"{_PROTOCOL}/test_history_frames.py",
        f"{_PROTOCOL}/test_subscriptions.py",
    ),
    "protocol.state_machine": (
        f"{_PROTOCOL}/test_state_machine.py",
        f"{_PROTOCOL}/test_subscriptions.py",
        f"{_PROTOCOL}/test_recovery.py",
        f"{_PROTOCOL}/test_sign_in.py",
        f"{_PROTOCOL}/test_signed_in.py",
        f"{_PROTOCOL}/test_client_events.py",
        f"{_PROTOCOL}/test_token_subscribes.py",
        f"{_PROTOCOL}/test_history_frames.py",
        f"{_PROTOCOL}/test_policy.py",
        f"{_PROTOCOL}/test_capabilities.py",
    ),
    "hub.recovery": (f"{_HUB}/test_recovery.py", f"{_HUB}/test_hub.py", f"{_HUB}/test_attach_points.py"),
    "hub.history_pages": (f"{_HUB}/test_history_pages.py", f"{_PROTOCOL}/test_history_frames.py"),
}
LIMIT_S = 120  # of one mutant


class _Changed(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module with other source."""

    def __init__(self, name: str, source: str) -> None:
        self._name, self._source = name, source

    def find_spec(self, fullname: str, path: object, target: object = None) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._name:
            return None
        return importlib.util.spec_from_loader(fullname, self, origin=str(path_of(self._name)))

    def exec_module(self, module: types.ModuleType) -> None:
        exec(compile(self._source, f"mutant of {self._name}", "exec"), module.__dict__)


def path_of(name: str) -> Path:
    return ROOT / "apps" / Path(*name.split(".")).with_suffix(".py")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("module", nargs="*", help=f"of {', '.join(TESTS)}; all of them if none is named")
    parser.add_argument("--sample", type=int, help="so many mutants of each module, chosen at random")
    parser.add_argument("--seed", type=int, default=1, help="of the sample (1)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--at-least", type=float, default=95.0, metavar="PERCENT", help="(95)")
    options = parser.parse_args()
    os.nice(10)
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT / "apps"))
    _import_libraries()
    all_killed = all_run = 0
    print("| Module | Mutants | Run | Killed |\n|---|--:|--:|--:|", flush=True)
    survivors: list[str] = []
    for module in options.module or TESTS:
        name = f"fanfare.{module}"
        source = path_of(name).read_text()
        [(_, killed)] = _judged(name, [mutations.Mutant(0, "", "", source)], TESTS[module], 1)
        assert not killed, f"the tests of {module} fail without a mutation"
        every = list(mutations.mutants(source))
        chosen = every
        if options.sample is not None and options.sample < len(every):
            chosen = random.Random(options.seed).sample(every, options.sample)
        left = [mutant for mutant, killed in _judged(name, chosen, TESTS[module], options.jobs) if not killed]
        survivors += [f"{module}, {mutant}" for mutant in sorted(left)]
        all_killed, all_run = all_killed + len(chosen) - len(left), all_run + len(chosen)
        print(f"| {module} | {len(every)} | {len(chosen)} | {len(chosen) - len(left)} |", flush=True)
    share = 100 * all_killed / max(all_run, 1)
    print(f"\n{all_killed} of {all_run} killed: {share:.1f} %. Survivors:", *survivors, sep="\n")
    return 0 if share >= options.at_least else 1


def _import_libraries() -> None:
    """What every mutant needs, but nothing of the package itself."""
    import asgiref.sync  # noqa: F401
    import channels.generic  # noqa: F401
    import cryptography.fernet  # noqa: F401
    import django.test  # noqa: F401
    import hypothesis  # noqa: F401
    import orjson  # noqa: F401
    import pytest_asyncio  # noqa: F401
    import pytest_django  # noqa: F401
    import uvicorn  # noqa: F401

    assert not any(name.partition(".")[0] == "fanfare" for name in sys.modules)


def _judged(
    name: str, mutants: Sequence[mutations.Mutant], tests: tuple[str, ...], jobs: int
) -> Iterator[tuple[mutations.Mutant, bool]]:
    running: dict[int, tuple[mutations.Mutant, float]] = {}
    waiting = list(mutants)
    while waiting or running:
        while waiting and len(running) < jobs:
            mutant = waiting.pop(0)
            running[_start(name, mutant.source, tests)] = (mutant, time.monotonic())
        for pid, (mutant, since) in list(running.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                del running[pid]
                yield mutant, status != 0
            elif time.monotonic() - since > LIMIT_S:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def _start(name: str, source: str, tests: tuple[str, ...]) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(nothing, descriptor)
        sys.meta_path.insert(0, _Changed(name, source))
        status = int(pytest.main(["-x", "-q", "--assert=plain", "-p", "no:cacheprovider", "-p", "no:xdist", *tests]))
    finally:
        os._exit(status)
    return 0


if __name__ == "__main__":
    sys.exit(main())
