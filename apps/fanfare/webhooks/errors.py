"""The exceptions of this package.

WebhooksError
├── Overtaken       another worker collects, too; whoever raises it starts again from what is stored
└── AddressRefused  a receiver's address is inside the network; also an OSError, for it comes up where sockets are made
"""

from __future__ import annotations

import errno


class WebhooksError(Exception):
    """Base class. `code` is for machines, the message for people."""

    code = "webhooks_error"


class Overtaken(WebhooksError):
    """The outbox stands somewhere else than this worker left it."""

    code = "overtaken"


class AddressRefused(WebhooksError, OSError):
    """`FANFARE_WEBHOOKS_ALLOW_PRIVATE` allows it."""

    code = "address_refused"

    def __init__(self, address: str) -> None:
        super().__init__(errno.EACCES, f"{address} is not a public address (FANFARE_WEBHOOKS_ALLOW_PRIVATE is off)")
