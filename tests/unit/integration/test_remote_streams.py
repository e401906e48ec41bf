"""The requests of remote mode, against the API of a real hub and log: those of many streams, and their order."""

from __future__ import annotations

import asyncio
import http.client
import time
import types
from collections.abc import AsyncIterator
from concurrent import futures
from pathlib import Path
from typing import Any

import orjson
import pytest

import fanfare
from fanfare import errors
from fanfare.api import asgi, rates
from fanfare.api import streams as api_streams
from fanfare.applications import models, registry
from fanfare.engine import current, interface
from fanfare.engine import errors as engine_errors
from fanfare.engine.local import engine as local_engine
from fanfare.hub import hub as hubs
from fanfare.hub import streams
from fanfare.integration.remote import client as remote_client
from fanfare.integration.remote import engine as remote_engine
from fanfare.integration.remote import streams as remote_streams
from fanfare.protocol import publications, revocations, termination
from fanfare.protocol import streams as stream_rules
from tests.unit.api import fakes

pytestmark = pytest.mark.django_db(transaction=True)

APPLICATION = registry.Application(id="7", key="key-7", secret="secret-7")
HEAD = streams.Head("answer")
State = interface.StreamState


class WiredClient(remote_client.Client):
    """Requests without a network: the API of a worker on the test's event loop answers."""

    def __init__(self, client: fakes.Client) -> None:
        super().__init__("http://deployment.example", APPLICATION, timeout_s=30.0)
        self.paths: list[str] = []
        self._client = client
        self._loop = asyncio.get_running_loop()

    def _attempt(
        self, method: str, path: str, query: dict[str, str], body: Any, deadline: float
    ) -> remote_client.Answer:
        self.paths.append(path)
        data = b"" if body is None else orjson.dumps(body)
        asked = self._client.request(method, self._signed(method, path, query, data), data)
        answer = asyncio.run_coroutine_threadsafe(asked, self._loop).result(30)
        assert answer is not None
        headers = http.client.HTTPMessage()
        for name, value in answer.headers.items():
            headers[name] = value
        return remote_client.Answer(answer.status, answer.json, headers)


class WiredEngine(remote_engine.RemoteEngine):
    def __init__(self, client: fakes.Client) -> None:
        wired = WiredClient(client)
        super().__init__(wired)
        self.paths = wired.paths

    async def write(self, *writes: interface.StreamWrite) -> list[interface.StreamReceipt]:
        return await asyncio.to_thread(self.write_streams, writes)


@pytest.fixture
async def hub(tmp_path: Path, application: models.Application) -> AsyncIterator[hubs.Hub]:
    hub = hubs.Hub(local_engine.LocalEngine(tmp_path / "engine"))
    await hub.start()
    yield hub
    await hub.stop()


@pytest.fixture
async def engine(hub: hubs.Hub, monkeypatch: pytest.MonkeyPatch) -> WiredEngine:
    # A producer that waits for an answer takes a thread, and so does the API that answers it.
    asyncio.get_running_loop().set_default_executor(futures.ThreadPoolExecutor(40))
    monkeypatch.setattr(api_streams, "_rate", rates.Rate("appends to this stream", "too_many_appends"))
    applications = registry.Registry()
    applications.put(APPLICATION)
    engine = WiredEngine(fakes.Client(asgi.Api(hub, applications, now=time.time)))
    monkeypatch.setattr(current, "current", lambda: engine)
    return engine


def where(stream: str) -> interface.StreamName:
    return interface.StreamName("7", f"private-{stream}", stream)


def piece(stream: str, text: str, after: int = 0) -> interface.StreamWrite:
    return stream_rules.piece(where(stream), HEAD, text, after=after, seq=after + 1, at=0, lease_s=600)


def end(stream: str, text: str) -> interface.StreamWrite:
    size = streams.units(text)
    data = streams.data(stream, 1, 0, text, State.DONE)
    return stream_rules.ended(
        where(stream), HEAD, data, after=1, size=size, state=State.DONE, retention=None, keep_s=60
    )


async def text_of(hub: hubs.Hub, stream: str) -> str:
    found = await hub.engine.ask(lambda queries: queries.stream(*where(stream)))
    assert found is not None
    return streams.text_of(found)


@pytest.fixture
async def opened(engine: WiredEngine) -> str:
    """The ids of open streams."""
    for stream in "abcde":
        [receipt] = await engine.write(stream_rules.opening(where(stream), HEAD))
        assert receipt.done
    engine.paths.clear()
    return "abcde"


async def test_writes_of_a_window_are_one_request_and_one_commit(
    engine: WiredEngine, hub: hubs.Hub, opened: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits, write = [], hub.engine.write_streams

    def counted(writes: Any, timeout: float | None = None) -> Any:
        commits.append(len(writes))
        return write(writes, timeout)

    monkeypatch.setattr(hub.engine, "write_streams", counted)
    receipts = await engine.write(*(piece(stream, f"text {stream}") for stream in opened))
    assert receipts == [interface.StreamReceipt(True, State.OPEN, 1, 6)] * 5
    assert engine.paths == ["streams/append"]
    assert commits == [5]
    assert [await text_of(hub, stream) for stream in opened] == [f"text {stream}" for stream in opened]


async def test_append_and_end_of_one_stream_are_done_in_order_and_once(
    engine: WiredEngine, hub: hubs.Hub, opened: str
) -> None:
    window = [piece("a", "whole"), end("a", "whole"), piece("b", "half")]
    ended, grown = interface.StreamReceipt(True, State.DONE, 1, 5), interface.StreamReceipt(True, State.OPEN, 1, 4)
    assert await engine.write(*window) == [interface.StreamReceipt(True, State.OPEN, 1, 5), ended, grown]
    repeated = await engine.write(*window)
    assert repeated == [receipt._replace(done=False) for receipt in (ended, ended, grown)]
    assert engine.paths == ["streams/append"] * 2
    assert (await text_of(hub, "a"), await text_of(hub, "b")) == ("whole", "half")


async def test_refused_stream_has_its_error_in_its_receipt(
    engine: WiredEngine, hub: hubs.Hub, opened: str, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.FANFARE = {"STREAM_MAX_LENGTH": 10, "STREAM_MAX_APPENDS": 1}
    monkeypatch.setattr(rates, "time", types.SimpleNamespace(monotonic=lambda: 5.0))
    short, long, unknown, busy = await engine.write(
        piece("a", "short"), piece("b", "x" * 11), piece("z", "?"), piece("a", "again", after=1)
    )
    assert short.done
    assert isinstance(long.error, errors.StreamTooLong)
    assert (long.error.actual, long.error.limit) == (11, 10)
    assert unknown == interface.StreamReceipt(False, None)
    assert isinstance(busy.error, engine_errors.EngineUnavailable), "the flusher repeats it"
    with pytest.raises(errors.StreamTooLong, match="11 UTF-16 code units; 10 are allowed"):
        await engine.write(piece("c", "x" * 11))
    assert await text_of(hub, "a") == "short"


async def test_streams_of_one_process_have_their_texts_and_a_refused_one_fails_alone(
    engine: WiredEngine, hub: hubs.Hub, settings: Any
) -> None:
    async def produce(stream: str) -> None:
        async with fanfare.stream(f"private-{stream}", "answer", id=stream) as answer:
            for token in range(30):
                await answer.append(f"<{token}>")
                await asyncio.sleep(0.001)

    ids = [f"s{number}" for number in range(10)]
    await asyncio.gather(*map(produce, ids))
    for stream in ids:
        assert await text_of(hub, stream) == "".join(f"<{token}>" for token in range(30))

    async with fanfare.stream("private-short", "answer", id="short") as short:
        with pytest.raises(errors.StreamTooLong, match="20 UTF-16 code units; 10 are allowed"):
            async with fanfare.stream("private-long", "answer", id="long") as long:
                settings.FANFARE = {"STREAM_MAX_LENGTH": 10}  # of the deployment: the producers have read theirs
                await long.append("x" * 20)
                await short.append("short")
    assert await text_of(hub, "short") == "short"


async def test_encrypted_stream_is_continued_with_its_text(engine: WiredEngine, hub: hubs.Hub, settings: Any) -> None:
    settings.FANFARE = {"ENCRYPTION_MASTER_KEY": "Y4RmdXnXxhFHvtE1fVkHlV3l3n8mZBQw0fGhpZ1lC2U="}
    before = ""
    for token in ("one 🎉 ", "two"):
        with pytest.raises(RuntimeError):
            async with fanfare.stream("private-encrypted-a", "answer", id="a") as answer:
                assert answer.text == before
                await answer.append(token)
                raise RuntimeError
        before += token


def test_batches_are_within_the_limits_of_the_api() -> None:
    def sizes(*writes: interface.StreamWrite) -> list[int]:
        return [len(batch) for batch in remote_streams.batches(writes)]

    assert remote_streams.BATCH == api_streams.BATCH
    assert api_streams.batch_body_limit(registry.Limits()) > remote_streams.BATCH_BYTES + 1_000
    assert sizes(*(piece("a", "x") for _ in range(250))) == [100, 100, 50]
    large, small = piece("a", "\0" * 100_000), piece("a", "x")  # 600 kB of JSON
    assert sizes(small, large, large, small, small) == [1, 1, 1, 2]
    assert sizes() == []


@pytest.mark.parametrize(
    ("command", "path"),
    [
        (revocations.publications("7", "token-1", expires=None, now=0.0), "capabilities/token-1/revoke"),
        (termination.publications("7", "ann", reconnect=False, now=0.0), "users/ann/terminate_connections"),
    ],
)
async def test_command_is_sent_after_the_events_before_it(
    engine: WiredEngine, command: list[interface.Publication], path: str
) -> None:
    event = publications.build(APPLICATION, "orders", "created", "{}", exclude=None, idempotency_key=None)
    await asyncio.to_thread(engine.append_blocking, [event, *command, event, event])
    assert engine.paths == ["events", path, "batch_events"]
