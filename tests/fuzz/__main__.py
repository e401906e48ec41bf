"""Feed mutated input to a new server, or to each parser, and print the results.

Exits with 1 if the server or its other clients were harmed, or if a parser raises an error that it does not document.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.harness import servers

COUNTS = {"frames": 1_000_000, "requests": 100_000}
SECONDS = 10.0


def attack(what: str, count: int, seed: int) -> None:
    """A server with four workers. Raises AssertionError."""
    from tests.fuzz import campaign, requests

    with tempfile.TemporaryDirectory(prefix="fanfare-fuzz-") as folder:
        fleet = servers.Fleet(Path(folder))
        deployment = fleet.deployment(**(requests.SETTINGS if what == "requests" else {}))
        tenant = campaign.application(deployment)
        server = fleet.start("gunicorn", deployment)
        run: Callable[..., object] = campaign.run if what == "frames" else requests.run
        try:
            print(asyncio.run(run(server, tenant, count, seed)))  # type: ignore[arg-type]
        except AssertionError as error:
            raise AssertionError(f"{error}\n{server.log_text()[-4_000:]}") from error
        finally:
            fleet.stop()
        assert "Traceback" not in server.log_text(), server.log_text()[-4_000:]


def parse(seconds: float, seed: int) -> None:
    """Raises AssertionError."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    import django

    django.setup()
    from tests.fuzz import parsers

    for name, target in parsers.TARGETS.items():
        print(f"{name:24}  {parsers.run(target, seconds, random.Random(seed)):,} inputs", flush=True)
    answers = asyncio.run(parsers.webhook_answers(seconds, random.Random(seed)))
    print(f"{'answer to a webhook':24}  {answers:,} inputs")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("what", nargs="?", choices=["frames", "requests", "parsers"], default="frames")
    parser.add_argument("--count", type=int, help=f"of frames or requests (default: {COUNTS})")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for each parser (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the random input (default: %(default)s)")
    options = parser.parse_args()
    try:
        if options.what == "parsers":
            parse(options.seconds, options.seed)
        else:
            attack(options.what, options.count or COUNTS[options.what], options.seed)
    except AssertionError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
