"""The network between one node and the store is cut without a reset, and heals."""

from __future__ import annotations

import socket

import pytest

from tests.harness import namespaces, parts, redisserver

SILENT_S = 0.3  # without an answer
ANSWER_S = 60.0  # TCP repeats what was sent during the cut at growing intervals


def test_cut_is_silent_and_concerns_one_node() -> None:
    namespaces.require()
    with (
        namespaces.networks(2) as networks,
        redisserver.running(under=networks.under, host=networks.address(0)) as server,
        socket.create_connection((networks.address(1), server.port), ANSWER_S) as one,
        socket.create_connection((networks.address(2), server.port), ANSWER_S) as two,
    ):
        networks.cut(1)
        for connection in (one, two):
            connection.sendall(b"PING\r\n")
        assert two.recv(100) == b"+PONG\r\n"
        one.settimeout(SILENT_S)
        with pytest.raises(TimeoutError):
            one.recv(100)
        networks.heal(1)
        one.settimeout(ANSWER_S)
        assert one.recv(100) == b"+PONG\r\n", "the connection survives"


def test_only_what_the_kernel_forbids_is_skipped_where_all_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "REQUIRE_ALL", True)
    with pytest.raises(pytest.skip.Exception, match="forbids network namespaces"):
        parts.refused("network namespaces", "mount --make-shared /run/netns failed: Operation not permitted")
    with pytest.raises(pytest.fail.Exception, match="network namespaces failed"):
        parts.refused("network namespaces", "ip: invalid argument")
