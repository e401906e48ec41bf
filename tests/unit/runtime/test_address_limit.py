"""The limit for the open connections of one client address."""

from __future__ import annotations

import pytest

from fanfare.runtime.address_limit import AddressLimit


def test_connection_that_is_closed_makes_room() -> None:
    limit = AddressLimit(2, "sockets")
    for _ in range(2):
        assert not limit.refusal("192.0.2.7")
        limit.opened("192.0.2.7")
    assert limit.refusal("192.0.2.7") == "2 sockets of this address are open; 2 are allowed"
    assert not limit.refusal("192.0.2.8")
    limit.closed("192.0.2.7")
    assert not limit.refusal("192.0.2.7")
    limit.closed("192.0.2.7")
    assert len(limit) == 0


@pytest.mark.parametrize(
    ("other", "is_refused"),
    [("2001:db8::ffff", True), ("[2001:db8::2]:443", True), ("2001:db8:0:1::1", False), ("::ffff:192.0.2.7", False)],
)
def test_ipv6_addresses_count_by_their_network(other: str, is_refused: bool) -> None:
    limit = AddressLimit(1, "sockets")
    limit.opened("2001:db8::1")
    assert bool(limit.refusal(other)) == is_refused


@pytest.mark.parametrize(("most", "address"), [(0, "192.0.2.7"), (1, "")])
def test_no_limit(most: int, address: str) -> None:
    limit = AddressLimit(most, "sockets")
    limit.opened(address)
    assert not limit.refusal(address)
    limit.closed(address)
    assert len(limit) == 0
