"""Whether a server can listen on an address, checked before it starts."""

from __future__ import annotations

import errno
import socket


def listening_problem(
    host: str, port: int, *, host_name: str = "FANFARE_HOST", port_name: str = "FANFARE_PORT"
) -> str | None:
    """Why nothing can listen there, in one sentence; None if something can.

    `host_name`, `port_name`: what the person who chose them calls them.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except socket.gaierror as error:
        return f"{host_name} is {host!r}, which is no address of this machine ({error.strerror})."
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        # As servers do: connections that end do not count.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen(1)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return f"Port {port} of {host} is taken: end what listens there, or choose another with {port_name}."
            if error.errno == errno.EACCES:
                return f"Port {port} needs a privilege that this user lacks: choose one above 1023 with {port_name}."
            return f"Nothing can listen on {host}, port {port}: {error.strerror}."
    return None
