"""What is known of Daphne, and nowhere else: it writes whatever it is given, so how much waits has to be asked below it."""

from __future__ import annotations

import functools
from typing import Any


def transport_of(send: Any) -> Any | None:
    """The Twisted transport behind a connection's `send`: Daphne gives a partial of `handle_reply` over its protocol object."""
    if not isinstance(send, functools.partial) or not send.args:
        return None
    protocol = send.args[0]
    if not type(protocol).__module__.startswith("daphne."):
        return None
    return getattr(protocol, "transport", None)


def buffered(transport: Any) -> int:
    """Bytes that Twisted has not given to the kernel yet; 0 for what is no Twisted transport."""
    if not hasattr(transport, "dataBuffer"):
        return 0
    return len(transport.dataBuffer) - int(transport.offset) + int(transport._tempDataLen)
