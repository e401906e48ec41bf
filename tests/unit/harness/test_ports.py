"""The reserved ports of servers that tests start."""

from __future__ import annotations

import socket

import pytest

from tests.harness import ports


class Owner:
    pass


def test_reserved_port_is_free_for_its_server_alone_until_the_owner_is_collected() -> None:
    owner = Owner()
    port = ports.reserve(owner, 10_000)
    for number in (port, port + 10_000):
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind((ports.HOST, number))
        with socket.create_server((ports.HOST, number)) as server:
            assert server.getsockname()[1] == number
    del owner
    with socket.socket() as other:
        other.bind((ports.HOST, port))


def test_reserved_ports_are_different() -> None:
    owners = [Owner() for _ in range(500)]
    assert len({ports.reserve(owner) for owner in owners}) == len(owners)
