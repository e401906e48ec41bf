"""The sockets of webhooks: none goes to an address inside the network.

Whoever may set the URL of an endpoint chooses where this server connects to, and the server stands where its operator's
other services are. What is checked is the address of the socket that is about to be made, after any name was resolved,
and for each redirect: there is no moment between the check and the connection in which a name could change.
"""

from __future__ import annotations

import ipaddress
import socket
from typing import Any

from fanfare.applications import addresses
from fanfare.webhooks import errors


def open_public(information: tuple[Any, ...]) -> socket.socket:
    """A socket for one line of getaddrinfo. Raises AddressRefused unless its address is one of the internet."""
    text = str(information[4][0])
    if not addresses.is_public(ipaddress.ip_address(text.partition("%")[0])):
        raise errors.AddressRefused(text)
    return open_any(information)


def open_any(information: tuple[Any, ...]) -> socket.socket:
    family, kind, protocol, _, _ = information
    made = socket.socket(family=family, type=kind, proto=protocol)
    made.setblocking(False)
    return made
