"""The order and the rate of handshakes, and the refusals of a full worker."""

from __future__ import annotations

import asyncio
import collections
from typing import Any

import pytest

from fanfare.sockets import accept_gate
from tests.harness import waiting

PATIENCE_S = 10.0


class Client:
    def __init__(self, order: list[Client]) -> None:
        self.is_connecting = True
        self.order = order

    def enter(self) -> None:
        self.order.append(self)


@pytest.fixture
def counts() -> collections.Counter[str]:
    return collections.Counter()


def gate(counts: collections.Counter[str], **options: Any) -> accept_gate.AcceptGate:
    def count(name: str) -> None:
        counts[name] += 1

    return accept_gate.AcceptGate(
        **{"per_second": 0, "connections": 0, "memory_bytes": 0, "count": count, **options}  # type: ignore[arg-type]
    )


async def test_handshakes_above_the_rate_wait_and_enter_in_order(counts: collections.Counter[str]) -> None:
    now = asyncio.get_running_loop().time()
    entered: list[Client] = []
    one = gate(counts, per_second=100, clock=lambda: now)
    clients = [Client(entered) for _ in range(6)]
    assert [client for client in clients if one.takes(client)] == clients[:2]
    await asyncio.sleep(3 * accept_gate.TICK_S)
    assert entered == []
    now += 0.025  # 0.02, which the clock may round to less than two handshakes

    async def two_have_entered() -> bool:
        return len(entered) == 2

    await waiting.until_async(two_have_entered, PATIENCE_S, "two clients have entered")
    assert entered == clients[2:4]
    assert one.waiting == 2


async def test_late_loop_lowers_the_rate_down_to_a_tenth_and_a_prompt_one_raises_it(
    counts: collections.Counter[str],
) -> None:
    now = asyncio.get_running_loop().time()
    one = gate(counts, per_second=100, clock=lambda: now)
    for _ in range(1_000):
        one.takes(Client([]))
    rates = []
    for late in (0.5, 0.5, 0.5, 0.5, 0.5, *[0.0] * 30):
        assert one._timer is not None
        one._timer.cancel()
        now = one._due_s + late
        one._serve()
        rates.append(one._rate)
    assert rates[:5] == [50, 25, 12.5, 10, 10]
    assert rates[5] > 10
    assert rates[-1] == 100


async def test_client_that_gave_up_takes_no_turn(counts: collections.Counter[str]) -> None:
    now = asyncio.get_running_loop().time()
    entered: list[Client] = []
    one = gate(counts, per_second=10, clock=lambda: now)
    first, gone, last = (Client(entered) for _ in range(3))
    assert one.takes(first)
    assert not one.takes(gone)
    assert not one.takes(last)
    gone.is_connecting = False
    now += 1.0

    async def last_has_entered() -> bool:
        return entered == [last]

    await waiting.until_async(last_has_entered, PATIENCE_S, "the last client has entered")


async def test_client_that_would_wait_too_long_is_refused(counts: collections.Counter[str]) -> None:
    now = asyncio.get_running_loop().time()
    one = gate(counts, per_second=1, clock=lambda: now)
    assert one.takes(Client([]))
    for _ in range(int(accept_gate.WAIT_S)):
        assert one.refusal(1) == ""
        one.takes(Client([]))
    assert "8 handshakes wait" in one.refusal(1)
    assert counts == {"sockets.refused.rate": 1}


async def test_full_worker_refuses(counts: collections.Counter[str]) -> None:
    one = gate(counts, connections=1_000, memory_bytes=100 << 20, memory=lambda: 150 << 20)
    assert "981 connections" in one.refusal(981)
    assert "150 MiB" in one.refusal(10)
    assert counts == {"sockets.refused.connections": 1, "sockets.refused.memory": 1}


async def test_no_limit_refuses_nothing(counts: collections.Counter[str]) -> None:
    one = gate(counts)
    assert one.refusal(1_000_000) == ""
    assert all(one.takes(Client([])) for _ in range(1_000))


def test_memory_of_this_process_is_known() -> None:
    assert accept_gate.resident_bytes() > 10 << 20


async def test_handshake_that_fails_leaves_its_turn_to_the_next(
    counts: collections.Counter[str], caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Client):
        def enter(self) -> None:
            raise RuntimeError

    entered: list[Client] = []
    one = gate(counts, per_second=10)
    first, broken, last = Client(entered), Broken(entered), Client(entered)
    assert [one.takes(client) for client in (first, broken, last)] == [True, False, False]

    async def last_has_entered() -> bool:
        return entered == [last]

    await waiting.until_async(last_has_entered, PATIENCE_S, "the last client has entered")
    assert [record.getMessage() for record in caplog.records] == ["A WebSocket handshake failed"]
