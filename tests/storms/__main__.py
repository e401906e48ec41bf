"""Let many clients return at once, or attack a server, and print the figures. Exits with 1 if a client does not get
through, or if one loses its connection during an attack.

The neighbours are connected before, and get an event 20 times a second. The crowd and the attacker have processes of
their own. The crowd has resume tokens and a channel of its own, so each of its clients subscribes and recovers.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from tests.deploys import clients, run
from tests.harness import servers
from tests.harness.deployments import Application
from tests.storms import attacks, neighbours

NEIGHBOURS = 100
PER_SECOND = 20.0
BEFORE_S = 5.0
PATIENCE_S = 120.0
LOOK_S = 0.1
MAX_RATIO = 1.2  # of the neighbours' 99th percentiles, attacked and idle; printed, and not in the exit code
CROWD_CHANNEL = "crowd"
DELIVERIES_PER_SECOND = 5_000.0  # to the crowd


async def crowd(port: int, application: Application, count: int) -> None:
    """Connect. For each line on the standard input, lose all connections, and print when all are back."""
    fleet = clients.Fleet(port, application, CROWD_CHANNEL)
    await fleet.open(count)
    print("ready", flush=True)
    while await asyncio.to_thread(sys.stdin.readline):
        fleet.codes.clear()
        for client in fleet.clients:
            client.drop()
        begun_s, used_s, late_s = time.monotonic(), time.process_time(), 0.0
        while fleet.live < count and time.monotonic() - begun_s < PATIENCE_S:
            slept_s = time.monotonic()
            await asyncio.sleep(LOOK_S)
            late_s = max(late_s, time.monotonic() - slept_s - LOOK_S)
        found = {
            "live": fleet.live,
            "seconds": time.monotonic() - begun_s,
            "codes": fleet.codes,
            "cpu_s": time.process_time() - used_s,
            "late_s": late_s,
        }
        print(json.dumps(found), flush=True)
    fleet.close()


async def storm(server: servers.Server, count: int, deliveries: float, returns: int) -> bool:
    """`deliveries`: to the crowd, each second. Returns whether all clients are live after each of the `returns`."""
    application = await asyncio.to_thread(
        server.deployment.create_application,
        *("Storms", "--history", f"{clients.CHANNEL}=10000,600", "--history", f"{CROWD_CHANNEL}=10000,600"),
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
    publishers = [
        asyncio.create_task(run.publish(server, application, run.Result("hup", NEIGHBOURS), PER_SECOND)),
        asyncio.create_task(
            run.publish(server, application, run.Result("hup", count), deliveries / count, CROWD_CHANNEL)
        ),
    ]
    print(f"{count} clients return at once to {len(server.workers())} worker(s)", flush=True)
    before_s: list[float] = []
    during_s: list[float] = []
    are_live = True
    for _ in range(returns):
        neighbours.delays_s.clear()
        await asyncio.sleep(BEFORE_S)
        before_s += [delay for _, delay in neighbours.delays_s]
        neighbours.delays_s.clear()
        used_s = sum(map(processor_seconds, server.workers()))
        process.stdin.write(b"go\n")
        found = json.loads(await process.stdout.readline())
        used_s = sum(map(processor_seconds, server.workers())) - used_s
        during_s += [delay for _, delay in neighbours.delays_s]
        are_live = are_live and found["live"] == count
        print(
            f"  {found['live']} are live after {found['seconds']:.1f} s, close codes meanwhile {found['codes']};"
            f" CPU: {used_s:.1f} s of the workers, {found['cpu_s']:.1f} s of the clients,"
            f" whose event loop was up to {found['late_s']:.1f} s late",
            flush=True,
        )
    for publisher in publishers:
        publisher.cancel()
    await asyncio.wait(publishers)
    neighbours.close()
    process.stdin.close()
    await process.wait()
    before_ms, during_ms = run.p99(before_s), run.p99(during_s)
    print(
        f"  p99 of {NEIGHBOURS} connected clients: {before_ms:.0f} ms before, {during_ms:.0f} ms during, "
        f"{during_ms / max(before_ms, 0.1):.1f} times"
    )
    return are_live


async def attack(fleet: servers.Fleet, counters: Sequence[str], seconds: float, turns: int) -> bool:
    """Attack one of two servers in each turn, the other one in the next. Print the medians of the turns. Returns
    whether no client of the servers lost its connection."""
    above = []
    pair = [fleet.start("uvicorn", fleet.deployment(**attacks.SETTINGS)) for _ in range(2)]
    print(f"p99 of the delays of events for {NEIGHBOURS} clients, medians of {turns} turns of {seconds:g} s:")
    print("attacked, idle beside it, ratio (lowest to highest); CPU of the attacked server beyond the idle one's")
    with neighbours.Attacker(pair[0]) as one, neighbours.Attacker(pair[1]) as other:
        async with neighbours.connected(*pair, NEIGHBOURS) as connected:
            await asyncio.sleep(BEFORE_S)
            for counter in ("", *counters):
                figures, cost_s, made = [], 0.0, 0
                for turn in range(turns):
                    attacked, idle = order = (0, 1) if turn % 2 == 0 else (1, 0)
                    attacker = (one, other)[attacked]
                    if counter:
                        attacker.begin(counter)
                    used_s = [processor_seconds(server.process.pid) for server in pair]
                    delays_s = await connected.delays_s(seconds)
                    spent_s = [
                        processor_seconds(server.process.pid) - used for server, used in zip(pair, used_s, strict=True)
                    ]
                    if counter:
                        made += await asyncio.to_thread(attacker.end)
                    figures.append([run.p99(delays_s[place]) for place in order])
                    cost_s += spent_s[attacked] - spent_s[idle]
                ratio = show(f"{counter}, {made} times" if counter else "no attack", figures, cost_s / turns / seconds)
                if ratio > MAX_RATIO:
                    above.append(f"{counter or 'no attack'} ({ratio:.2f})")
            print(f"{connected.closed} connections of the neighbours were lost")
            print(f"median ratio above {MAX_RATIO}: {', '.join(above) or 'none'}")
            return connected.closed == 0


def processor_seconds(pid: int) -> float:
    used = psutil.Process(pid).cpu_times()
    return float(used.user + used.system)


def show(what: str, figures: Sequence[Sequence[float]], share: float) -> float:
    """`figures`: of each turn, the percentiles of the attacked and of the idle server. `share`: of a core. Returns the
    median of their ratios."""
    attacked_ms, idle_ms = (statistics.median(each) for each in zip(*figures, strict=True))
    ratios = sorted(attacked / max(idle, 0.1) for attacked, idle in figures)
    print(
        f"  {what}: {attacked_ms:.1f} ms, {idle_ms:.1f} ms, {statistics.median(ratios):.2f}"
        f" ({ratios[0]:.2f} to {ratios[-1]:.2f}); {share:.1%} of a core",
        flush=True,
    )
    return statistics.median(ratios)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.storms", description=__doc__)
    parser.add_argument("--clients", type=int, default=2_000)
    parser.add_argument("--command", choices=("uvicorn", "gunicorn"), default="gunicorn")
    parser.add_argument("--rate", type=int, default=None, help="FANFARE_ACCEPT_RATE; 0 for no limit")
    parser.add_argument(
        "--attack",
        nargs="*",
        metavar="COUNTER",
        help="attack a server instead, by the counters of docs/reference/limits.md; without one: by all in turn",
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="of each turn of an attack")
    parser.add_argument("--turns", type=int, default=6, help="of each attack: the two servers take turns")
    parser.add_argument(
        "--deliveries", type=float, default=DELIVERIES_PER_SECOND, help="events for the returning clients, each second"
    )
    parser.add_argument("--returns", type=int, default=3, help="how often the clients return")
    parser.add_argument("--crowd", help=argparse.SUPPRESS)
    parser.add_argument("--attacker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if unknown := set(options.attack or ()) - set(attacks.ATTACKS):
        parser.error(f"unknown counters: {', '.join(sorted(unknown))}; known are {', '.join(attacks.ATTACKS)}")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if options.crowd:
        port, *credentials = options.crowd.split(":")
        asyncio.run(crowd(int(port), Application(*credentials), options.clients))
        return 0
    if options.attacker:
        neighbours.attack(options.attacker)
        return 0
    with tempfile.TemporaryDirectory(prefix="fanfare-storms-") as folder:
        fleet = servers.Fleet(Path(folder))
        try:
            if options.attack is not None:
                counters = options.attack or list(attacks.ATTACKS)
                return 0 if asyncio.run(attack(fleet, counters, options.seconds, options.turns)) else 1
            settings = {} if options.rate is None else {"FANFARE_ACCEPT_RATE": str(options.rate)}
            server = fleet.start(options.command, fleet.deployment(**settings))
            return 0 if asyncio.run(storm(server, options.clients, options.deliveries, options.returns)) else 1
        finally:
            fleet.stop()


if __name__ == "__main__":
    sys.exit(main())
