"""Whether a server can listen on an address, checked before it starts."""

from __future__ import annotations

import errno
import socket


def listening_problem(
    host: str, port: int, *, host_name: str = "FANFARE_HOST", port_name: str = "FANFARE_PORT"
) -> str | None:
    """Why a server cannot listen there, in one sentence; None if it can.

    `host_name`, `port_name`: the names of the settings, for the message.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except socket.gaierror as error:
        return f"{host_name} is {host!r}, which is not an address of this machine ({error.strerror})."
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        # As servers do: closing connections do not block the port.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen(1)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return (
                    f"Port {port} of {host} is in use: stop the other program, or choose another port with {port_name}."
                )
            if error.errno == errno.EACCES:
                return (
                    f"Port {port} requires a privilege that this user lacks: choose a port above 1023 with {port_name}."
                )
            return f"A server cannot listen on {host}, port {port}: {error.strerror}."
    return None
