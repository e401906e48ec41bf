"""For any sequence of appends, restarts, and writes that fail or lose their answer, a stream ends with its text.

The log is a real one. The test takes the flusher's part.
"""

from __future__ import annotations

import asyncio
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

import orjson
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fanfare.engine import errors, interface
from fanfare.engine.local import engine as local_engine
from fanfare.hub import streams
from fanfare.integration import stream_producer, target
from tests.unit.protocol import fakes

CHANNEL = "private-chat"
State = interface.StreamState


class Flusher:
    """In place of the thread."""

    def __init__(self) -> None:
        self.producers: set[Any] = set()

    def add(self, producer: Any) -> None:
        self.producers.add(producer)

    def remove(self, producer: Any) -> None:
        self.producers.discard(producer)

    def wake(self, producer: Any) -> None:
        pass


class AnyStream(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.folder = tempfile.TemporaryDirectory()
        self.engine = local_engine.LocalEngine(pathlib.Path(self.folder.name))
        self.write = self.engine.write_streams
        self.patch.setattr(self.engine, "write_streams", self.write_and_deliver)
        self.shown = ""  # the text of a page
        self.flusher = Flusher()
        self.patch.setattr(target, "engine", lambda: self.engine)
        self.patch.setattr(stream_producer, "flusher", lambda: self.flusher)
        self.producer = stream_producer.Producer(fakes.APPLICATION, CHANNEL, "answer", stream_id="a", meta=None)
        self.producer.open()
        self.text = ""
        self.tokens = 0

    def write_and_deliver(self, writes: Sequence[interface.StreamWrite]) -> list[interface.StreamReceipt]:
        receipts = self.write(writes)
        for write, receipt in zip(writes, receipts, strict=True):
            body = write.body if write.state is State.OPEN else streams.closing(write.body)
            if receipt.done and body:
                event = orjson.loads(orjson.loads(body)["data"])
                units = self.shown.encode("utf-16-le")[: 2 * event["at"]]
                self.shown = units.decode("utf-16-le") + event["text"]
        return receipts

    @rule(text=st.sampled_from(["", "a", "bc", "é", "😀"]))
    def append(self, text: str) -> None:
        self.producer.append(text, None)
        self.text += text
        self.tokens += 1

    @rule()
    def restart(self) -> None:
        self.producer.restart()
        self.text, self.tokens = "", 0

    @rule(is_written=st.booleans(), is_answered=st.booleans(), data=st.data())
    def flush(self, is_written: bool, is_answered: bool, data: st.DataObject) -> None:
        """`data`: what the producer does while the write is under way."""
        writes = self.producer.take(0.0)
        receipts = self.engine.write_streams(writes) if is_written else None
        for act in data.draw(st.lists(st.sampled_from([self.restart, lambda: self.append("x")]), max_size=2)):
            act()
        if receipts is not None and is_answered:
            self.producer.settle(writes, receipts)
        else:
            self.producer.postpone(errors.EngineUnavailable("away"))

    @precondition(lambda self: self.stored().state is State.OPEN)
    @rule()
    def lapse(self) -> None:
        """The process was stopped for longer than its lease."""
        with self.engine.queries() as asked:
            streams.end(self.engine, asked, self.producer.where, State.INTERRUPTED, retention=None, keep_s=60)

    @invariant()
    def the_producer_has_the_text(self) -> None:
        assert self.producer.failure is None
        assert (self.producer.text, self.producer.seq) == (self.text, self.tokens)

    def stored(self) -> interface.Streamed:
        with self.engine.queries() as asked:
            found = asked.stream(*self.producer.where)
        assert found is not None
        return found

    def teardown(self) -> None:
        try:
            self.producer.end(State.DONE)
            for _ in range(4):  # a write in doubt, one that drops its text, one after a lapse, the end
                if self.flusher.producers:
                    writes = self.producer.take(0.0)
                    self.producer.settle(writes, self.engine.write_streams(writes))
            stored = self.stored()
            assert (stored.state, stored.seq, stored.size) == (State.DONE, self.tokens, streams.units(self.text))
            assert (streams.text_of(stored), self.shown) == (self.text, self.text)
        finally:
            self.patch.undo()
            asyncio.run(self.engine.close())
            self.folder.cleanup()


AnyStream.TestCase.settings = settings(max_examples=60, stateful_step_count=12, deadline=None)
TestAnyStream = AnyStream.TestCase
