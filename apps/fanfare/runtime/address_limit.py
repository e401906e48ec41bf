"""Limit for the open connections of one client address in a worker."""

from __future__ import annotations

import collections

from fanfare.runtime import addresses


class AddressLimit:
    """`most`: connections of one address; 0 for no limit. `what`: their name in the message. IPv6 addresses count by
    their /64 network. Connections without an address, such as those on a Unix socket, are not limited.
    """

    def __init__(self, most: int, what: str) -> None:
        self._most = most
        self._what = what
        self._open: collections.Counter[str] = collections.Counter()

    def refusal(self, address: str) -> str:
        """Why this address gets no further connection now; empty if it does."""
        if not self._most or not address:
            return ""
        count = self._open[addresses.network(address)]
        return f"{count} {self._what} of this address are open; {self._most} are allowed" if count >= self._most else ""

    def opened(self, address: str) -> None:
        if self._most and address:
            self._open[addresses.network(address)] += 1

    def closed(self, address: str) -> None:
        if self._most and address:
            network = addresses.network(address)
            self._open[network] -= 1
            if self._open[network] <= 0:
                del self._open[network]

    def __len__(self) -> int:
        """The addresses with an open connection."""
        return len(self._open)
