"""Damages the files of a log at random places, and checks that an engine serves it or a new one.

    python -m tests.unit.engine.damage [--places N] [--seed S] [--live]

Prints each kind of outcome with its number. It exits with 1 if an engine did not open, did not publish, or gave a
position a second time.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import logging
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from fanfare.engine import errors, interface
from fanfare.engine.local import engine, paths
from tests.unit.engine.workers import APP

KEPT = interface.Retention(1_000, 600)
TRIES = 4  # of a server that starts, or of a publisher
LIVE_TRIES, PAUSE_S = 40, 0.25  # of a client while a worker restarts after damage
LAST = 60  # events that the log has

# Without a third argument the process ends without closing anything, so the WAL and its index stay.
WRITER = f"""
import asyncio, os, sys
from pathlib import Path
from fanfare.engine import interface
from fanfare.engine.local import engine

async def main():
    log = engine.LocalEngine(Path(sys.argv[1]))
    await log.open(lambda entries: None, lambda reason, partition: None)
    kept = interface.Retention(1_000, 600)
    for number in range(int(sys.argv[2]), int(sys.argv[2]) + {LAST} // 2):
        body = b"\\xff\\xc3 %d " % number * 40
        await log.append([interface.Publication("1", f"kept-{{number % 5}}", body, retention=kept)])
        await log.append([interface.Publication("1", "cache-c", b"%d" % number, cache_seconds=600)])
        await log.take_session("1", f"token-{{number}}", "1.1")
        member = interface.Member(f"user-{{number}}", '{{"n":%d}}' % number)
        log.attach(interface.SubscribeRequest("1", "presence-c", f"1.{{number}}", member=member), lambda answer: None)
    log.set_subscribers("1", "presence-c", {LAST})
    await log.ask(lambda queries: queries.members("1", "presence-c"))
    if len(sys.argv) > 3:
        await log.close()
    os._exit(0)

asyncio.run(main())
"""


class Place(NamedTuple):
    """What is done to a file: `offset` and `count` in bytes."""

    file: str
    action: str
    offset: int
    count: int


def template(folder: Path) -> Path:
    """A log with half of its entries in the database and half in the WAL, as a killed server leaves it."""
    made = folder / "template"
    root = Path(__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root / "apps"), str(root)])}
    for first, *more in ((0, "close"), (LAST // 2,)):
        subprocess.run([sys.executable, "-c", WRITER, made, str(first), *more], check=True, env=environment)
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(made / "sockets")
    return made


def damaged(chance: random.Random, folder: Path, *, is_live: bool = False) -> Place:
    """Damage one of the files at a random place. `is_live`: an engine has them open. A shared-memory file is not cut
    then: the kernel ends a process that reads memory behind the end of its file."""
    files = [path for path in sorted(folder.glob("log.sqlite3*")) if path.stat().st_size]
    path = chance.choice(files)
    size = path.stat().st_size
    action = chance.choice(["flip", "overwrite", "zero", "cut", "grow"])
    if is_live and action == "cut" and path.name.endswith("-shm"):
        action = "overwrite"
    # Headers are small, and damage in them is the hardest to survive.
    offset = chance.randrange(min(size, 4_200)) if chance.random() < 0.4 else chance.randrange(size)
    count = min(size - offset, chance.choice([1, 1, 4, 100, 4_096, 20_000]))
    with path.open("r+b") as file:
        if action == "cut":
            file.truncate(offset)
        elif action == "grow":
            file.seek(0, os.SEEK_END)
            file.write(chance.randbytes(count))
        else:
            file.seek(offset)
            before = file.read(count)
            file.seek(offset)
            if action == "flip":
                file.write(bytes([before[0] ^ (1 << chance.randrange(8))]))
            else:
                file.write(chance.randbytes(count) if action == "overwrite" else bytes(count))
    return Place(path.name, action, offset, count)


async def outcome(folder: Path, chance: random.Random | None = None) -> str:
    """Open an engine on the folder and use it. Answers `served` or `new log`; raises AssertionError. `chance`: the
    files are damaged while the engine has them open."""
    log = engine.LocalEngine(folder)
    failures: list[str] = []
    for _ in range(TRIES):
        try:
            await log.open(lambda entries: None, lambda reason, partition: None)
            break
        except errors.EngineError as error:
            failures.append(repr(error))
    else:
        raise AssertionError(f"did not start: {failures}")
    try:
        if chance is not None:
            await _published(log, "kept-0", failures)
            failures.append(str(damaged(chance, folder, is_live=True)))
        for number in range(5):
            await _published(log, f"kept-{number}", failures)
        answered: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        member = interface.Member("new", "null")
        wanted = interface.SubscribeRequest(
            APP, "presence-c", "2.1", member=member, cached=True, history=interface.RecoveryRequest()
        )
        for _ in range(TRIES if chance is None else LIVE_TRIES):
            answered = asyncio.get_running_loop().create_future()
            log.attach(wanted, answered.set_result)
            answer = await asyncio.wait_for(answered, 10)
            if isinstance(answer, interface.SubscribeResult):
                break
            await asyncio.sleep(PAUSE_S)
        assert isinstance(answer, interface.SubscribeResult), f"no answer to a subscription: {answer} {failures}"
    finally:
        await log.close()
    return "new log" if list(folder.glob(f"*{paths.DAMAGED}*")) else "served"


async def _published(log: engine.LocalEngine, channel: str, failures: list[str]) -> None:
    """A position that the log gave out before must not be given out again."""
    event = interface.Publication(APP, channel, b"new", retention=KEPT)
    for _ in range(TRIES):
        try:
            [receipt] = await asyncio.wait_for(log.append([event]), 10)
        except errors.EngineUnavailable as error:
            failures.append(repr(error))
            await asyncio.sleep(0.1)
            continue
        assert receipt.position is not None
        EPOCHS.setdefault(channel, set())
        assert receipt.position.epoch not in EPOCHS[channel] or receipt.position.offset > LAST // 5, (
            f"{receipt.position} was given out before"
        )
        return
    raise AssertionError(f"did not publish: {failures}")


EPOCHS: dict[str, set[str]] = {}  # of the template, by channel


async def known_epochs(folder: Path) -> None:
    log = engine.LocalEngine(folder)
    with log.queries() as queries:
        for number in range(5):
            _, top = queries.read(APP, f"kept-{number}", 0, 1)
            assert top is not None
            assert top.offset == LAST // 5
            EPOCHS[f"kept-{number}"] = {top.epoch}
    await log.close()


def run(places: int, seed: int, folder: Path, *, is_live: bool = False) -> tuple[collections.Counter[str], list[str]]:
    """Answers the outcomes with their numbers, and the failures."""
    chance = random.Random(seed)
    made = template(folder)
    inspected = folder / "inspected"
    shutil.copytree(made, inspected)
    asyncio.run(known_epochs(inspected))
    outcomes: collections.Counter[str] = collections.Counter()
    failures: list[str] = []
    for number in range(places):
        here = folder / "engine"
        shutil.copytree(made, here)
        place = None if is_live else damaged(chance, here)
        try:
            outcomes[asyncio.run(outcome(here, chance if is_live else None))] += 1
        except (AssertionError, TimeoutError, Exception) as error:  # noqa: BLE001 - each is a failure of the engine
            failures.append(f"seed {seed}, place {number}, {place}: {error!r}")
        shutil.rmtree(here)
    return outcomes, failures


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.unit.engine.damage", description=__doc__.partition("\n")[0])
    parser.add_argument("--places", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--live", action="store_true", help="damage the files while an engine has them open")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        outcomes, failures = run(options.places, options.seed, Path(folder), is_live=options.live)
    for failure in failures:
        print(failure)
    print(f"{options.places} places, seed {options.seed}: {dict(outcomes)}, {len(failures)} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
