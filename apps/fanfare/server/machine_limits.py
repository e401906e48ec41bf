"""Limits of the machine that a server meets long before its own: open files, the queue of new connections, cores."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import Final

OPEN_FILES: Final = 4_096  # every connection is an open file; the usual limit of 1,024 is reached at a thousand
QUEUE: Final = 1_024  # connections that wait to be accepted: more are refused while thousands return at once
SOMAXCONN: Final = Path("/proc/sys/net/core/somaxconn")
CPU_QUOTA: Final = Path("/sys/fs/cgroup/cpu.max")  # of a container, in cgroup v2: microseconds of CPU, of a period


def open_files() -> tuple[str, str] | None:
    """The problem and its remedy; None if the limit suffices."""
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= OPEN_FILES:
        return None
    return (
        f"A process may open {soft} files, and every connection is an open file.",
        "Raise the limit: `ulimit -n 65536`, or LimitNOFILE=65536 in a systemd unit.",
    )


def queue(path: Path = SOMAXCONN) -> tuple[str, str] | None:
    try:
        length = int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None  # not Linux
    if length >= QUEUE:
        return None
    return (
        f"The kernel lets {length} new connections wait (net.core.somaxconn); it refuses more that come at once.",
        "Raise it: `sysctl -w net.core.somaxconn=4096`, or `sysctls` of the container.",
    )


def cores(path: Path = CPU_QUOTA) -> float:
    """How much CPU this process and its siblings may use, in cores: what a container may, or else the machine's."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = map(int, path.read_text(encoding="ascii").split())
        return min(usable, quota / period)
    except (OSError, ValueError, ArithmeticError):
        return usable  # "max", or no cgroup v2


def warning() -> str:
    """One line for the log; empty if the limits suffice."""
    return " ".join(f"{problem} {remedy}" for problem, remedy in filter(None, (open_files(), queue())))
