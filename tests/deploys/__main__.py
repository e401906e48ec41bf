"""Deploy with open sockets and print the figures. Exits with 1 if an event is missing or a client did not resume."""

from __future__ import annotations

import argparse
import asyncio
import resource
import sys
import tempfile
from pathlib import Path

from tests.deploys import run, ways
from tests.harness import servers


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.deploys", description=__doc__)
    parser.add_argument("--sockets", type=int, default=1_000)
    parser.add_argument("--how", action="append", choices=sorted(ways.WAYS), help="default: all")
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    faults = False
    for how in options.how or list(ways.WAYS):
        with tempfile.TemporaryDirectory(prefix="fanfare-deploys-") as folder:
            fleet = servers.Fleet(Path(folder))
            try:
                with ways.WAYS[how].running(fleet.start, fleet) as server:
                    result = asyncio.run(run.play(how, server, fleet, sockets=options.sockets))
            finally:
                for one in fleet.servers:
                    one.kill()
        print(result.text(), flush=True)
        faults = faults or bool(result.faults)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
