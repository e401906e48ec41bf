"""Send a million mutated frames to a new server and print the results.

Exits with 1 if the server or its other clients were harmed.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from tests.fuzz import campaign
from tests.harness import servers

FRAMES = 1_000_000


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--frames", type=int, default=FRAMES, help="number of frames (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the random frames (default: %(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fanfare-fuzz-") as folder:
        fleet = servers.Fleet(Path(folder))
        deployment = fleet.deployment()
        tenant = campaign.application(deployment)
        server = fleet.start("gunicorn", deployment)
        try:
            print(asyncio.run(campaign.run(server, tenant, options.frames, options.seed)))
        except AssertionError as error:
            print(f"{error}\n{server.log_text()[-4_000:]}", file=sys.stderr)
            return 1
        finally:
            fleet.stop()
        if "Traceback" in server.log_text():
            print(server.log_text()[-4_000:], file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
