"""This machine: its cores, the CPU time and memory of processes, and its description."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.load import errors

TICK_S = 1 / os.sysconf("SC_CLK_TCK")  # the resolution of /proc/PID/stat, usually 10 ms: 0.3 % of a run of 3 s

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Cores(NamedTuple):
    server: int
    client: int


def cores() -> Cores:
    """The first two cores that this process may run on."""
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < 2:
        raise errors.Unsuited("The benchmark needs two cores, one for the server and one for the client.")
    return Cores(usable[0], usable[1])


@contextlib.contextmanager
def pinned(core: int | None) -> Iterator[None]:
    """Pin this process, and the children it starts meanwhile, to one core. None: allow all cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, range(os.cpu_count() or 1) if core is None else {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def cpu_seconds(pid: int) -> float:
    """User and system time of all threads of a process."""
    # The process name in parentheses may contain any character; field 3 follows it (proc_pid_stat(5)).
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK_S


def cpu_clock_s(pid: int) -> float:
    """The same by the kernel's clock of the process, in nanoseconds instead of ticks (clock_getcpuclockid(3))."""
    return time.clock_gettime((~pid << 3) | 2)


def resident_bytes(pid: int) -> int:
    """The resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES


def private_bytes(pid: int) -> int:
    """The memory that a process shares with no other one: what one more worker needs."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("Private_Clean", "Private_Dirty")))


class Clocks(NamedTuple):
    """Seconds: wall time, the server's CPU time, and the CPU time of this process, the client."""

    wall_s: float
    server_s: float
    client_s: float

    def since(self, before: Clocks) -> Clocks:
        return Clocks(*(now - then for now, then in zip(self, before, strict=True)))


def clocks(pid: int) -> Clocks:
    return Clocks(time.perf_counter(), cpu_seconds(pid), time.process_time())


def core_seconds(pid: int) -> float:
    """The busy time of a pinned process's core, for all processes and including time stolen by other guests."""
    (core,) = os.sched_getaffinity(pid)
    line = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith(f"cpu{core} "))
    user, nice, system, _idle, _iowait, irq, softirq, steal, *_ = map(int, line.split()[1:])  # proc_stat(5)
    return (user + nice + system + irq + softirq + steal) * TICK_S


def allow_files(count: int) -> None:
    """Raise the limit of open files of this process and its children to `count`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        raise errors.Unsuited(f"The benchmark needs {count} open files; the hard limit of this machine is {hard}.")
    if soft != resource.RLIM_INFINITY and soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


def describe() -> str:
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    load, kernel = os.getloadavg()[0], platform.release().partition("-")[0]
    return f"{model}, {os.cpu_count()} cores, {platform.system()} {kernel}, load before the run {load:.2f}"


def versions(*distributions: str) -> str:
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return ", ".join([python, *(f"{name} {importlib.metadata.version(name)}" for name in distributions)])
