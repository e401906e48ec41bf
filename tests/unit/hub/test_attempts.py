"""Requests to the engine that are repeated while it is unavailable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fanfare.engine import interface
from fanfare.hub import attempts
from fanfare.hub import hub as hubs
from tests.harness import waiting
from tests.unit.hub.doubles import Client, ScriptedEngine

REQUEST = interface.SubscribeRequest("1", "a")


class Requests(attempts.Attempts):
    """`failures`: of answers that could not be handled."""

    def __init__(self, hub: hubs.Hub) -> None:
        self.failures: list[Exception] = []
        super().__init__(hub.engine, hub.supervisor, hub.count, lambda _, error: self.failures.append(error))


async def until(condition: Callable[[], object]) -> None:
    async def look() -> object:
        return condition()

    await waiting.until_async(look, 30, "the condition")


async def test_pauses_grow_with_each_refusal(
    hub: hubs.Hub, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    paused: list[tuple[Any, ...]] = []
    monkeypatch.setattr(attempts.backoff, "pause_s", lambda *arguments: paused.append(arguments) or 0.0)
    answers: list[object] = []
    Requests(hub).attach(Client(hub, "1.1").connection, lambda: REQUEST, answers.append)
    for _ in range(3):
        await until(lambda: engine.attaching)
        engine.refuse("engine_unavailable")
    await until(lambda: engine.attaching)
    engine.answer()
    assert answers == [interface.SubscribeResult()]
    assert paused == [(n, attempts.FIRST_PAUSE_S, attempts.LONGEST_PAUSE_S) for n in (1, 2, 3)]
    assert hub.counters["subscribes.repeated"] == 3


async def test_request_whose_pause_would_end_too_late_is_refused_at_once(
    hub: hubs.Hub, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts.backoff, "pause_s", lambda *_: attempts.REPEATED_S + 1)
    answers: list[object] = []
    Requests(hub).attach(Client(hub, "1.1").connection, lambda: REQUEST, answers.append)
    engine.refuse("engine_unavailable")
    assert answers == [interface.Refused("engine_unavailable", "no")]
    assert hub.counters["subscribes.repeated"] == 0


@pytest.mark.parametrize("is_repeated", [False, True])
async def test_answer_or_request_that_raises_is_reported(
    hub: hubs.Hub, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch, is_repeated: bool
) -> None:
    monkeypatch.setattr(attempts, "FIRST_PAUSE_S", 0.01)
    error = ValueError("it cannot be handled")

    def fail(*_: object) -> None:
        raise error

    requests = [REQUEST]

    def wanted() -> interface.SubscribeRequest:
        if not requests:
            raise error
        return requests.pop()

    found = Requests(hub)
    found.attach(Client(hub, "1.1").connection, wanted, fail)
    engine.refuse("engine_unavailable" if is_repeated else "member_limit")
    await until(lambda: found.failures)
    assert found.failures == [error]
