"""The command that measures curves: its counting, and one run of it with small sizes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import cast

import pytest

from tests.harness import deployments, wire
from tests.load import connections, curves, errors

JOINED = b'{"event":"pusher_internal:member_added","channel":"presence-curve","data":"{}"}'
LEFT = b'{"event":"pusher_internal:member_removed","channel":"presence-curve","data":"{}"}'


class Members:
    """Two members of a presence channel. `servers` are the server's ends of their connections."""

    def __init__(self) -> None:
        pairs = [socket.socketpair() for _ in range(2)]
        self.servers = [server for _, server in pairs]
        self.clients = [connections.Connection(client) for client, _ in pairs]
        self.reader = curves._Reader(self.clients)

    def tell(self, member: int, *texts: bytes) -> None:
        self.servers[member].sendall(
            b"".join(wire.encode(wire.WireFrame(wire.TEXT, text), masked=False) for text in texts)
        )

    def close(self) -> None:
        self.reader.close()
        for one in (*self.servers, *(client.socket for client in self.clients)):
            one.close()


@pytest.fixture
def members() -> Iterator[Members]:
    two = Members()
    yield two
    two.close()


def test_visit_is_over_when_every_member_got_both_events(members: Members) -> None:
    members.tell(0, JOINED, LEFT)
    members.tell(1, JOINED, LEFT)
    members.reader.expect(4)


def test_missing_event_of_a_visit_raises_lost(members: Members, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "PATIENCE_S", 0.05)
    members.tell(0, JOINED, LEFT)
    members.tell(1, JOINED)
    with pytest.raises(errors.Lost, match="1 events of members are missing"):
        members.reader.expect(4)


def test_client_subscribes_to_all_its_channels_at_once() -> None:
    dialogue = curves._joining(["room-1", "room-2"])
    next(dialogue)
    sent = dialogue.send(b'{"event":"pusher:connection_established","data":"{}"}')
    assert sent.count(b"pusher:subscribe") == 2
    answer = b'{"event":"pusher_internal:subscription_succeeded","channel":"room-1","data":"{}"}'
    dialogue.send(answer)
    with pytest.raises(StopIteration):
        dialogue.send(answer)


def test_process_without_work_is_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "QUIET_S", 0.01)
    asked = iter([1.0, 1.5, 1.5, 1.6, 1.6, 1.6])  # CPU seconds: the server works twice, then it rests

    class Busy:
        def cpu_s(self) -> float:
            return next(asked)

    curves._settle(cast(curves.Server, Busy()))
    assert list(asked) == []


def test_unknown_curve_ends_the_command_with_an_error() -> None:
    ended = _run("nothing")
    assert ended.returncode == 2
    assert "unknown curves: nothing" in ended.stderr


@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="the command needs two cores"
)
def test_command_prints_the_cost_at_each_size() -> None:
    ended = _run("channels", "presence", "--upto", "10", "--seconds", "0.3")
    assert ended.returncode == 0, ended.stderr
    lines = [line.strip("| ").split(" | ") for line in ended.stdout.splitlines()]
    found = {line[0]: line[1:] for line in lines if line[0] in curves.CURVES}
    assert found.keys() == {"channels", "presence"}
    for size, cpu_us, times, *_ in found.values():
        assert (size, times) == ("10", "1.00")
        assert float(cpu_us) > 0


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.load.curves", *arguments],
        cwd=deployments.REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
