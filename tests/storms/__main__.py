"""Let many clients return at once and print the figures. Exits with 1 if a client does not get through.

The neighbours are connected before, in a process of their own, and get an event 20 times a second. The crowd has resume
tokens, so each of its clients subscribes and recovers.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.deploys import clients, run
from tests.harness import servers
from tests.harness.deployments import Application

NEIGHBOURS = 100
PER_SECOND = 20.0
BEFORE_S = 5.0
PATIENCE_S = 120.0


async def crowd(port: int, application: Application, count: int) -> None:
    """Connect, wait for a line on the standard input, lose all connections, and print when all are back."""
    fleet = clients.Fleet(port, application)
    await fleet.open(count)
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    for client in fleet.clients:
        client.drop()
    begun_s = time.monotonic()
    while fleet.live < count and time.monotonic() - begun_s < PATIENCE_S:
        await asyncio.sleep(0.02)
    found = {"live": fleet.live, "seconds": time.monotonic() - begun_s, "codes": fleet.codes}
    print(json.dumps(found), flush=True)
    fleet.close()


async def storm(server: servers.Server, count: int) -> bool:
    application = await asyncio.to_thread(
        server.deployment.create_application, "Storms", "--history", f"{clients.CHANNEL}=10000,600"
    )
    await asyncio.to_thread(run.wait_for, server, application)
    neighbours = clients.Fleet(server.port, application)
    await neighbours.open(NEIGHBOURS)
    credentials = f"{application.id}:{application.key}:{application.secret}"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.storms", "--crowd", f"{server.port}:{credentials}", "--clients", str(count)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    await asyncio.wait_for(process.stdout.readline(), PATIENCE_S + count / 50)
    result = run.Result("hup", NEIGHBOURS)
    publisher = asyncio.create_task(run.publish(server, application, result, PER_SECOND))
    await asyncio.sleep(BEFORE_S)
    begun_s = time.monotonic()
    process.stdin.write(b"go\n")
    found = json.loads(await process.stdout.readline())
    end_s = time.monotonic()
    publisher.cancel()
    await asyncio.wait([publisher])
    before_ms = run.p99([delay for at, delay in neighbours.delays_s if begun_s - BEFORE_S < at < begun_s])
    during_ms = run.p99([delay for at, delay in neighbours.delays_s if begun_s <= at <= end_s])
    neighbours.close()
    await process.wait()
    print(f"{count} clients return at once to {len(server.workers())} worker(s); {found['live']} are live")
    print(f"  all live after {found['seconds']:.1f} s, close codes meanwhile {found['codes']}")
    print(f"  p99 of {NEIGHBOURS} connected clients: {before_ms:.0f} ms before, {during_ms:.0f} ms during")
    return bool(found["live"] == count)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.storms", description=__doc__)
    parser.add_argument("--clients", type=int, default=2_000)
    parser.add_argument("--command", choices=("uvicorn", "gunicorn"), default="gunicorn")
    parser.add_argument("--rate", type=int, default=None, help="FANFARE_ACCEPT_RATE; 0 for no limit")
    parser.add_argument("--crowd", help=argparse.SUPPRESS)
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if options.crowd:
        port, *credentials = options.crowd.split(":")
        asyncio.run(crowd(int(port), Application(*credentials), options.clients))
        return 0
    with tempfile.TemporaryDirectory(prefix="fanfare-storms-") as folder:
        fleet = servers.Fleet(Path(folder))
        try:
            settings = {} if options.rate is None else {"FANFARE_ACCEPT_RATE": str(options.rate)}
            server = fleet.start(options.command, fleet.deployment(**settings))
            return 0 if asyncio.run(storm(server, options.clients)) else 1
        finally:
            fleet.stop()


if __name__ == "__main__":
    sys.exit(main())
