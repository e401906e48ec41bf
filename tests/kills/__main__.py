"""Run the kill test and print its tables. Exits with 1 if a guarantee was broken, with 2 if it could not run."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.harness import pusherjs, servers
from tests.kills import chaos, cuts, histories, redis_stores, report, rounds, stores

STORES = {
    "local": stores.local,
    "moves": stores.moves,
    "postgres": stores.postgres,
    "postgres-cuts": cuts.postgres,
    "redis": redis_stores.single,
    "redis-cuts": cuts.redis,
    "redis-cluster": redis_stores.cluster,
    "redis-sentinel": redis_stores.sentinel,
    "valkey": redis_stores.valkey,
}
# Rounds of one kind alone.
TITLED = {"moves": rounds.MOVES, "postgres-cuts": rounds.CUTS, "redis-cuts": rounds.CUTS}
NOT_FAILOVER = ("local", *TITLED)
LOG_TEXT = 4_000  # characters of a server's log, starting at a traceback


def main() -> int:
    options = _options()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the servers and the stores are stopped
    if options.judge:
        return _judge(options.judge)
    faults = []
    keep = options.keep or Path(tempfile.mkdtemp(prefix="fanfare-histories-"))
    keep.mkdir(parents=True, exist_ok=True)
    print(f"raw histories: {keep}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="fanfare-kills-") as folder, pusherjs.Runtime() as runtime:
        fleet = servers.Fleet(Path(folder))
        try:
            for name, this, seconds in (
                ("whole", TITLED.get(options.engine, rounds.WHOLE), options.seconds),
                ("bounded", rounds.BOUNDED, options.bounded_seconds if options.engine not in TITLED else 0),
                ("failover", rounds.FAILOVER, options.failover_seconds if options.engine not in NOT_FAILOVER else 0),
            ):
                if not seconds:
                    continue
                print(f"{options.engine}: {this.title}: {seconds:g} s …", file=sys.stderr, flush=True)
                result = asyncio.run(
                    _play(
                        this.only(options.client),
                        options,
                        fleet,
                        runtime,
                        seconds,
                        keep / f"{options.engine}-{name}.jsonl",
                    )
                )
                print(f"{report.text(result)}\n", flush=True)
                faults += result.faults
        except (OSError, AssertionError) as error:  # the test harness raises AssertionError
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            _show_tracebacks(fleet)
            return 2
        finally:
            fleet.stop()
        if _show_tracebacks(fleet):
            faults.append("a server logged a traceback")
    return 1 if faults else 0


async def _play(
    this: rounds.Round,
    options: argparse.Namespace,
    fleet: servers.Fleet,
    runtime: pusherjs.Runtime,
    seconds: float,
    keep: Path,
) -> rounds.Result:
    async with STORES[options.engine](failover=this.failover) as store:
        return await rounds.play(
            this,
            fleet,
            runtime,
            seconds=seconds,
            per_second=options.per_second,
            every_s=options.every,
            store=store,
            keep=keep,
        )


def _judge(files: Sequence[Path]) -> int:
    """Judge kept histories again."""
    results = [rounds.judge(histories.read(file)) for file in files]
    for result in results:
        print(f"{report.text(result)}\n")
    return 1 if any(result.faults for result in results) else 0


def _show_tracebacks(fleet: servers.Fleet) -> bool:
    """Print the tracebacks in the servers' logs; whether there are any."""
    found = False
    for log in [server.log_text() for server in fleet.servers]:
        _, traceback, rest = log.partition("Traceback (most recent call last)")
        if traceback:
            found = True
            print(f"Traceback in a server's log:\n{traceback}{rest[:LOG_TEXT]}", file=sys.stderr)
    return found


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.kills", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="with large limits (60); 0: skip")
    parser.add_argument("--bounded-seconds", type=float, default=30.0, help="with small limits (30); 0: skip")
    parser.add_argument("--failover-seconds", type=float, default=30.0, help="with losses of the store (30); 0: skip")
    parser.add_argument("--engine", choices=sorted(STORES), default="local", help="the engine (local)")
    parser.add_argument("--keep", type=Path, help="the folder that gets the raw histories; a temporary one by default")
    parser.add_argument(
        "--judge", type=Path, nargs="+", metavar="FILE", help="judge kept histories again, and run none"
    )
    parser.add_argument("--per-second", type=int, default=1_000, help="events per second (1000)")
    parser.add_argument(
        "--every", type=float, default=3.0, help=f"seconds between two of the {len(chaos.ORDER)} failures (3)"
    )
    parser.add_argument(
        "--client", action="append", default=[], help="clients whose name contains this; all by default"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
