"""Ask all workers of the deployment a question.

The question is a command of the log, which every worker reads. Each answers with a message to the mailbox of the worker
that asked, so an answer costs the other workers nothing.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import orjson

from fanfare.engine import errors as engine_errors
from fanfare.engine import interface
from fanfare.hub import hub as hubs

COMMAND: Final = "console.question"
WAIT_S: Final = 1.0  # a worker whose loop does not turn within this time is left out

# The answer of one worker, as JSON; None for no answer. It may be awaited.
Answer = Callable[[dict[str, Any]], Any | Awaitable[Any]]


class Answers(NamedTuple):
    """`workers`: the answers by the id of the worker. `missing`: how many workers did not answer in time."""

    workers: dict[str, Any]
    missing: int


@dataclass(slots=True)
class _Pending:
    answered: dict[str, Any] = field(default_factory=dict)
    heard: int = 0
    complete: asyncio.Event = field(default_factory=asyncio.Event)


class Survey:
    """One per worker, on the hub's loop. `worker`: the id under which this worker answers."""

    def __init__(self, hub: hubs.Hub, worker: str) -> None:
        self.worker = worker
        self._hub = hub
        self._mailbox = f"#console-{worker}"
        self._questions: dict[str, Answer] = {}
        self._pending: dict[str, _Pending] = {}
        self._is_listening = False
        hub.on_control(COMMAND, self._on_question)

    def on(self, question: str, answer: Answer) -> None:
        """`answer(argument)` gives this worker's answer. It is called in every worker, the one that asks included."""
        self._questions[question] = answer

    async def ask(self, question: str, argument: dict[str, Any] | None = None, *, wait_s: float = WAIT_S) -> Answers:
        """The answers of all workers. Without the log the only one is this worker's own."""
        if not self._is_listening:
            self._is_listening = True
            self._hub.on_message(self._mailbox, self._on_answer)
        argument = argument or {}
        expected = max(1, int(self._hub.engine.statistics().get("workers", 1)))
        if expected == 1:
            return Answers(await self._own(question, argument), 0)
        token = secrets.token_hex(8)
        pending = self._pending[token] = _Pending()
        body = {"id": token, "to": self._mailbox, "question": question, "argument": argument, "workers": expected}
        try:
            entry = interface.Publication("", COMMAND, orjson.dumps(body), interface.Kind.CONTROL)
            await self._hub.engine.append([entry])
            async with asyncio.timeout(wait_s):
                while pending.heard < expected:
                    pending.complete.clear()
                    await pending.complete.wait()
        except (engine_errors.EngineError, TimeoutError):
            if self.worker not in pending.answered:
                pending.answered |= await self._own(question, argument)
                pending.heard += 1
        finally:
            del self._pending[token]
        return Answers(pending.answered, max(0, expected - pending.heard))

    async def _own(self, question: str, argument: dict[str, Any]) -> dict[str, Any]:
        found = await self._answer(question, argument)
        return {} if found is None else {self.worker: orjson.loads(orjson.dumps(found))}

    async def _answer(self, question: str, argument: dict[str, Any]) -> Any:
        answer = self._questions.get(question)
        if answer is None:
            return None
        found = answer(argument)
        return await found if isinstance(found, Awaitable) else found

    # -- from the log --------------------------------------------------------------------------------------------------

    def _on_question(self, _app: str, body: bytes) -> None:
        asked = orjson.loads(body)
        self._hub.supervisor.spawn("answer to a question of the console", self._reply(asked))

    async def _reply(self, asked: dict[str, Any]) -> None:
        found = await self._answer(asked["question"], asked["argument"])
        body = orjson.dumps({"id": asked["id"], "worker": self.worker, "answer": found})
        # A lost answer counts as missing.
        self._hub.engine.post(
            interface.Publication("", asked["to"], body, interface.Kind.MESSAGE), lambda _reason: None
        )

    def _on_answer(self, body: bytes) -> None:
        answer = orjson.loads(body)
        pending = self._pending.get(answer["id"])
        if pending is None:
            return
        pending.heard += 1
        if answer["answer"] is not None:
            pending.answered[answer["worker"]] = answer["answer"]
        pending.complete.set()
