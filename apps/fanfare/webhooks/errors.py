"""The exceptions of this package.

WebhooksError
├── Overtaken       another worker stores events as well
└── AddressRefused  the address of a receiver is not public; also an OSError, because aiohttp expects one from a socket
"""

from __future__ import annotations

import errno


class WebhooksError(Exception):
    """Base class. `code` is for programs, the message for people."""

    code = "webhooks_error"


class Overtaken(WebhooksError):
    """The stored position is not the one that this worker wrote. The worker starts again at the stored position."""

    code = "overtaken"


class AddressRefused(WebhooksError, OSError):
    """FANFARE_WEBHOOKS_ALLOW_PRIVATE allows such addresses."""

    code = "address_refused"

    def __init__(self, address: str) -> None:
        super().__init__(errno.EACCES, f"{address} is not a public address (FANFARE_WEBHOOKS_ALLOW_PRIVATE is off)")
