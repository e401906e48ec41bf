"""Sends on the socket of a uvloop transport, beside the transport.

uvloop writes with `write`. With 1,000 subscribers, `send` of the same bytes takes 0.89 to 0.92 times the CPU for each
delivery (docs/explanation/performance.md): the kernel omits its checks for files, and the transport's objects are not
read.

The transport owns the socket's descriptor. uvloop calls `connection_lost` before it closes the descriptor, so a
protocol that does not send afterwards cannot reach another client.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

# asyncio's own transports use `send` already. Those of TLS encrypt.
TRANSPORTS = ("TCPTransport", "UnixTransport")


class _Borrowed(socket.SocketType):
    """A socket object that does not close its descriptor."""

    __slots__ = ()

    def __del__(self) -> None:
        self.detach()


def sender(transport: Any) -> Callable[[bytes], int] | None:
    """The `send` of the transport's socket: returns the number of bytes sent, or raises OSError. None for transports of
    another class.

    It may be used while the transport has no bytes waiting, and until `connection_lost`.
    """
    cls = type(transport)
    if cls.__module__ != "uvloop.loop" or cls.__name__ not in TRANSPORTS:
        return None
    # `send` does not use the family, and without it the constructor would ask the kernel.
    borrowed = _Borrowed(socket.AF_INET, socket.SOCK_STREAM, 0, transport.get_extra_info("socket").fileno())
    borrowed.settimeout(0)  # with socket.setdefaulttimeout() of a project, `send` would wait for a slow client
    return borrowed.send
