"""Parsed addresses; and public ones, compared with the IANA registries of special-purpose addresses."""

from __future__ import annotations

import ipaddress

import pytest

from fanfare.runtime import addresses

# https://www.iana.org/assignments/iana-ipv4-special-registry: block, and whether webhooks may go there. The registry's
# "Globally Reachable" is followed, except for the anycast addresses in 192.0.0.0/24.
IPV4 = [
    ("0.0.0.0/8", False),
    ("0.0.0.0/32", False),
    ("10.0.0.0/8", False),
    ("100.64.0.0/10", False),
    ("127.0.0.0/8", False),
    ("168.63.129.16/32", False),  # not in this registry: a service of the host of Azure's machines
    ("169.254.0.0/16", False),
    ("172.16.0.0/12", False),
    ("192.0.0.0/24", False),
    ("192.0.0.0/29", False),
    ("192.0.0.8/32", False),
    ("192.0.0.9/32", False),  # Port Control Protocol: globally reachable, and the nearest gateway
    ("192.0.0.10/32", False),  # TURN: the same
    ("192.0.0.170/32", False),
    ("192.0.0.171/32", False),
    ("192.0.2.0/24", False),
    ("192.31.196.0/24", True),  # AS112-v4
    ("192.52.193.0/24", True),  # AMT
    ("192.88.99.0/24", False),
    ("192.168.0.0/16", False),
    ("192.175.48.0/24", True),  # direct delegation of AS112
    ("198.18.0.0/15", False),
    ("198.51.100.0/24", False),
    ("203.0.113.0/24", False),
    ("240.0.0.0/4", False),
    ("255.255.255.255/32", False),
    ("224.0.0.0/4", False),  # not in this registry: multicast has its own
]

# https://www.iana.org/assignments/iana-ipv6-special-registry, likewise.
IPV6 = [
    ("::1/128", False),
    ("::/128", False),
    ("64:ff9b:1::/48", False),
    ("100::/64", False),
    ("100:0:0:1::/64", False),
    ("2001::/23", False),
    ("2001::/32", False),
    ("2001:1::1/128", False),  # Port Control Protocol: globally reachable, and the nearest gateway
    ("2001:1::2/128", False),  # TURN: the same
    ("2001:1::3/128", False),  # DNS-SD Service Registration Protocol: the same
    ("2001:2::/48", False),
    ("2001:3::/32", False),  # AMT: globally reachable; webhooks have no use for it
    ("2001:4:112::/48", False),  # AS112-v6: the same
    ("2001:10::/28", False),
    ("2001:20::/28", False),  # ORCHIDv2: identifiers, no hosts
    ("2001:30::/28", False),  # DRIP: the same
    ("2001:db8::/32", False),
    ("2620:4f:8000::/48", True),  # direct delegation of AS112
    ("3fff::/20", False),
    ("5f00::/16", False),
    ("fc00::/7", False),
    ("fe80::/10", False),
    ("fec0::/10", False),  # not in this registry: site-local, deprecated
    ("ff00::/8", False),  # not in this registry: multicast has its own
]


@pytest.mark.parametrize(("block", "expected"), [*IPV4, *IPV6])
def test_both_ends_of_each_block_follow_the_registry(block: str, expected: bool) -> None:
    network = ipaddress.ip_network(block)
    ends = {network[0], network[-1]}
    assert {addresses.is_public(end) for end in ends} == {expected}


@pytest.mark.parametrize("block", [block for block, expected in [*IPV4, *IPV6] if not expected])
def test_neighbours_of_a_block_are_public_unless_they_are_in_another_block(block: str) -> None:
    network = ipaddress.ip_network(block)
    special = [ipaddress.ip_network(other) for other, _ in [*IPV4, *IPV6]]
    unicast = ipaddress.ip_network("2000::/3")
    for number in (int(network[0]) - 1, int(network[-1]) + 1):
        if not 0 <= number <= int(type(network[0])(b"\xff" * len(network[0].packed))):
            continue
        neighbour = type(network[0])(number)
        if any(neighbour in other for other in special if other.version == neighbour.version):
            continue
        if neighbour.version == 6 and neighbour not in unicast:
            assert not addresses.is_public(neighbour)
        elif neighbour.version == 4 or neighbour.sixtofour is None:
            assert addresses.is_public(neighbour), neighbour


PUBLIC = ["1.1.1.1", "8.8.8.8", "93.184.215.14", "172.15.255.255", "100.63.255.255", "2606:4700:4700::1111"]


@pytest.mark.parametrize("text", PUBLIC)
def test_ordinary_addresses_are_public(text: str) -> None:
    assert addresses.is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize("form", ["::ffff:{}", "64:ff9b::{}"])
@pytest.mark.parametrize(
    ("embedded", "expected"), [("8.8.8.8", True), ("127.0.0.1", False), ("10.1.2.3", False), ("192.0.0.9", False)]
)
def test_address_that_embeds_an_ipv4_address_is_public_if_that_is(form: str, embedded: str, expected: bool) -> None:
    assert addresses.is_public(ipaddress.ip_address(form.format(embedded))) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2002:808:808::1", True),  # 6to4 of 8.8.8.8
        ("2002:7f00:1::", False),  # of 127.0.0.1
        ("2002:a9fe:a9fe::", False),  # of 169.254.169.254
        ("::8.8.8.8", False),  # IPv4-compatible, deprecated
        ("::ffff:0:8.8.8.8", False),  # IPv4-translated: no host of the internet has such an address
        ("::127.0.0.1", False),
        ("fe80::1%eth0", False),
        ("4000::1", False),  # unassigned
    ],
)
def test_other_notations(text: str, expected: bool) -> None:
    assert addresses.is_public(ipaddress.ip_address(text)) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("192.0.2.1:4711", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("[2001:db8::1]:4711", "2001:db8::1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("", None),
        ("unknown", None),
        ("example.com:80", None),
        ("127.1", None),
        ("1.2.3.4.5", None),
    ],
)
def test_address_is_parsed_with_and_without_a_port(text: str, expected: str | None) -> None:
    parsed = addresses.parse(text)
    assert (None if parsed is None else str(parsed)) == expected
