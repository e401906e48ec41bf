"""Ports for the servers of tests, each reserved while the server's object exists."""

from __future__ import annotations

import contextlib
import socket
import weakref

HOST = "127.0.0.1"


def reserve(owner: object, *offsets: int) -> int:
    """A free port. The ports at `offsets` above it are reserved too.

    A port that is only looked up can go to another server, or to an outgoing connection, before its server starts or
    while it restarts. A test then talks to the wrong server. Here a socket is bound to the port until `owner` is
    collected. It does not listen, so the server, which sets SO_REUSEADDR, can bind the port as well.
    """
    while True:
        with contextlib.ExitStack() as sockets:
            port = _bind(sockets, 0)
            try:
                for offset in offsets:
                    _bind(sockets, port + offset)
            except (OSError, OverflowError):  # one of them is taken, or there is no such port
                continue
            weakref.finalize(owner, sockets.pop_all().close)
            return port


def _bind(sockets: contextlib.ExitStack, port: int) -> int:
    reserved = sockets.enter_context(socket.socket())
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.bind((HOST, port))
    return int(reserved.getsockname()[1])
