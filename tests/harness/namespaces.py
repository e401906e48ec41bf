"""A store in a network namespace of its own, with one network for each node, which a test can cut and heal.

    node N ── 10.X.N.0/30 ── router N ── 10.Y.N.0/30 ── store

The nodes stay in the namespace of the tests; each reaches the store at another address. A cut router forwards no
packets: they vanish in both directions, as behind a failed switch, and no connection is reset. Needs root and `ip`.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator

from tests.harness import parts


class Networks:
    """`nodes`: how many there are. The network 0 is the test's own, and is never cut."""

    def __init__(self, nodes: int) -> None:
        self.nodes = nodes
        self._store = f"fanfare-store-{os.getpid()}"
        self._routers = [f"fanfare-router-{number}-{os.getpid()}" for number in range(nodes + 1)]
        self._links = [f"ff{number}-{os.getpid()}" for number in range(nodes + 1)]
        # Several runs on one machine have different addresses.
        self._near, self._far = f"10.{128 + os.getpid() % 64}", f"10.{192 + os.getpid() % 64}"

    @property
    def under(self) -> tuple[str, ...]:
        """The command before that of a program of the store."""
        return (parts.executable("ip"), "netns", "exec", self._store)

    def address(self, node: int) -> str:
        """The store's address for a node; 0: for the test."""
        return f"{self._far}.{node}.2"

    def cut(self, node: int) -> None:
        self._forward(node, on=False)

    def heal(self, node: int) -> None:
        self._forward(node, on=True)

    def _forward(self, node: int, *, on: bool) -> None:
        write = f"echo {int(on)} > /proc/sys/net/ipv4/ip_forward"
        _ip("netns", "exec", self._routers[node], "sh", "-c", write)

    def make(self) -> None:
        _ip("netns", "add", self._store)
        _ip("-n", self._store, "link", "set", "lo", "up")
        for node, (router, link) in enumerate(zip(self._routers, self._links, strict=True)):
            near, far = f"{self._near}.{node}", f"{self._far}.{node}"
            _ip("netns", "add", router)
            _ip("link", "add", link, "type", "veth", "peer", "name", "near", "netns", router)
            _ip("-n", router, "link", "add", "far", "type", "veth", "peer", "name", f"node{node}", "netns", self._store)
            for of, name, address in (
                ((), link, f"{near}.1/30"),
                (("-n", router), "near", f"{near}.2/30"),
                (("-n", router), "far", f"{far}.1/30"),
                (("-n", self._store), f"node{node}", f"{far}.2/30"),
            ):
                _ip(*of, "addr", "add", address, "dev", name)
                _ip(*of, "link", "set", name, "up")
            _ip("route", "add", f"{far}.0/30", "via", f"{near}.2")
            _ip("-n", self._store, "route", "add", f"{near}.0/30", "via", f"{far}.1")
            self.heal(node)

    def remove(self) -> None:
        """Idempotent. The links of the nodes end here, and the others with their namespaces, some time after the last
        process in them has ended: the next networks may have the same names."""
        for link in self._links:
            _ip("link", "del", link, check=False)
        for name in (*self._routers, self._store):
            _ip("netns", "del", name, check=False)


def _ip(*arguments: str, check: bool = True) -> None:
    done = subprocess.run(
        [parts.executable("ip"), *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert not check or done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"


def require() -> None:
    """Skip or fail the test if this process may not make such networks: often not even as root, in a container."""
    try:
        with networks(0):
            pass
    except AssertionError as failure:
        parts.refused("network namespaces", str(failure))


@contextlib.contextmanager
def networks(nodes: int) -> Iterator[Networks]:
    found = Networks(nodes)
    try:
        found.make()
        yield found
    finally:
        found.remove()
