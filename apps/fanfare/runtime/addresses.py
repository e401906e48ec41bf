"""IP addresses: parsing them as peers, proxies and URLs write them, the headers of proxies, the check for public ones.

Webhooks go to public addresses only, unless a setting allows others. The list of special-purpose addresses is our own,
after the IANA registries, because the standard library's differs between Python releases (192.0.0.0/24 was public in
3.11.7).
"""

from __future__ import annotations

import ipaddress

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# IANA IPv4 Special-Purpose Address Registry, without the anycast blocks of AS112 and AMT, which are public; and 224/4.
# 192.0.0.0/24 is refused as a whole: its two public addresses (PCP, TURN) belong to the nearest gateway.
_REFUSED_V4 = tuple(
    ipaddress.IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private use
        "100.64.0.0/10",  # shared address space of providers
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # in no registry: the host's services for a virtual machine of Azure
        "169.254.0.0/16",  # link-local, with the metadata services of clouds (169.254.169.254)
        "172.16.0.0/12",  # private use
        "192.0.0.0/24",  # IETF protocol assignments
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # relays of 6to4, deprecated
        "192.168.0.0/16",  # private use
        "198.18.0.0/15",  # benchmarking
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and the limited broadcast
    )
)

# RFC 4291: all global unicast addresses so far. Outside are the unspecified and the loopback address, unique local,
# link-local, site-local, multicast and IPv4-compatible addresses, and all unassigned ones.
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")

# IANA IPv6 Special-Purpose Address Registry, inside 2000::/3. 2001::/23 is refused as a whole: Teredo, benchmarking,
# ORCHID, DRIP, and anycast addresses of the nearest gateway.
_REFUSED_V6 = tuple(
    ipaddress.IPv6Network(network)
    for network in (
        "2001::/23",  # IETF protocol assignments
        "2001:db8::/32",  # documentation
        "3fff::/20",  # documentation
    )
)

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052: the last four bytes are an IPv4 address


def parse(text: str) -> Address | None:
    """An address, with or without a port: `192.0.2.1:4711`, `2001:db8::1`, `[2001:db8::1]:4711`. None: not an address.

    An IPv4-mapped IPv6 address is returned as the IPv4 address.
    """
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, ipaddress.IPv6Address) else address


def network(text: str) -> str:
    """What a limit for each address counts by: the address, or the /64 network of an IPv6 one, which one client may
    have as a whole. Other text is returned as it is.
    """
    address = parse(text)
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, 64), strict=False))
    return text if address is None else str(address)


def is_proxy_header(name: str) -> bool:
    """Whether proxies add this header to the requests that they pass on. `name`: in lower case."""
    return name in ("forwarded", "via", "x-real-ip") or name.startswith("x-forwarded-")


def is_public(address: Address) -> bool:
    """Whether the address can belong to a host on the internet.

    An IPv6 address that embeds an IPv4 address (IPv4-mapped, NAT64, 6to4) is public if the embedded address is.
    """
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in _REFUSED_V4)
    embedded = _embedded(address)
    if embedded is not None:
        return is_public(embedded)
    return address in _GLOBAL_UNICAST and not any(address in network for network in _REFUSED_V6)


def _embedded(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    if address in _NAT64:
        return ipaddress.IPv4Address(address.packed[-4:])
    return address.ipv4_mapped or address.sixtofour
