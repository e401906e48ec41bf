"""Which network addresses are outside: the ones that a stranger may make this server call."""

from __future__ import annotations

import ipaddress

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052: the last four bytes are an IPv4 address
_UNICAST = ipaddress.IPv6Network("2000::/3")  # RFC 4291: all that is given out so far


def is_public(address: Address) -> bool:
    """Whether the address belongs to a host of the internet: not of this machine, a private network, the provider's
    own (100.64.0.0/10), the link (169.254.169.254, where clouds keep credentials), a multicast group or nobody.

    An IPv6 address that only wraps an IPv4 one is as public as that.
    """
    if isinstance(address, ipaddress.IPv4Address):
        return address.is_global and not address.is_multicast
    inner = _inner(address)
    if inner is not None:
        return is_public(inner)
    return address.is_global and address in _UNICAST


def _inner(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    if address in _NAT64:
        return ipaddress.IPv4Address(address.packed[-4:])
    return address.ipv4_mapped or address.sixtofour
