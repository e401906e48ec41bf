"""SSE connections of real servers: their format in curl, and recovery without loss from every failure."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness import calls, deployments, event_streams, parts, publishers, servers, waiting

Name = Callable[[str], str]
Start = Callable[..., servers.Server]

PROMPT = 3.0  # seconds for a stop with open streams
COMMANDS = ["uvicorn", "gunicorn", "daphne"]


def keeping(fleet: servers.Fleet, **settings: str) -> deployments.Deployment:
    """A deployment whose application keeps history of `kept-…` and `private-kept-…`."""
    deployment = fleet.deployment(**settings)
    deployment.application = deployment.create_application(
        "Streams",
        "--history=*kept-*=200000,600",
        "--replay=*kept-*=50000,33554432",
    )
    return deployment


@pytest.fixture(scope="module", params=COMMANDS)
def any_server(request: pytest.FixtureRequest, fleet: servers.Fleet) -> Iterator[servers.Server]:
    server = fleet.start(request.param, keeping(fleet))
    yield server
    server.stop()


# -- curl --------------------------------------------------------------------------------------------------------------


def test_curl_shows_the_stream_line_by_line(any_server: servers.Server, name: Name) -> None:
    channel = name("kept")
    curl = parts.executable("curl")
    url = any_server.url(event_streams.path(any_server.application, [channel]))
    with subprocess.Popen([curl, "-sN", url], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        head = [process.stdout.readline() for _ in range(5)]
        assert head[0].startswith("retry: ")
        assert head[2].startswith("id: 1.")
        assert head[3:] == [
            "event: stream\n",
            f'data: {{"channels":{{"{channel}":{{"recovered":false,"was_recovering":false,"replayed":0}}}}}}\n',
        ]
        cursor = head[2].removeprefix("id: ").strip().removesuffix("0")
        for number in (1, 2):
            calls.publish(any_server, channel, "tick", str(number))
            lines = [process.stdout.readline() for _ in range(3)]
            assert lines == [
                "\n",
                f"id: {cursor}{number}\n",
                f'data: {{"event":"tick","channel":"{channel}","data":"{number}"}}\n',
            ]
        process.terminate()
    again = subprocess.Popen([curl, "-sN", "-H", f"Last-Event-ID: {cursor}1", url], stdout=subprocess.PIPE, text=True)
    with again as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(8)]
        assert '"recovered":true,"was_recovering":true,"replayed":1' in lines[4]
        assert lines[6:] == [f"id: {cursor}2\n", f'data: {{"event":"tick","channel":"{channel}","data":"2"}}\n']
        process.terminate()


def test_curl_shows_the_reason_of_a_refusal(any_server: servers.Server, name: Name) -> None:
    url = any_server.url(event_streams.path(any_server.application, [name("private-kept")]))
    done = subprocess.run([parts.executable("curl"), "-s", url], capture_output=True, text=True, check=True, timeout=10)
    assert '"code":"token_required"' in done.stdout


# -- access ------------------------------------------------------------------------------------------------------------


async def test_token_opens_a_channel_and_its_expiry_ends_the_stream(any_server: servers.Server, name: Name) -> None:
    channel = name("private-kept")
    token = event_streams.token(any_server.application, "private-kept-*", seconds=2)
    async with event_streams.listen(any_server, any_server.application, channel, token=token) as stream:
        await stream.statement()
        await asyncio.to_thread(calls.publish, any_server, channel, "tick", "1")
        assert await stream.numbers(1) == [1]
        assert await stream.ended()
    target = event_streams.path(any_server.application, [channel], token=token)
    async with event_streams.request(any_server, target, last_event_id=stream.last_event_id) as refused:
        assert refused.status == 204
    async with event_streams.request(any_server, target) as refused:
        assert refused.status == 401
    assert token not in any_server.log_text()


async def test_token_of_the_command_is_accepted(any_server: servers.Server, name: Name) -> None:
    channel = name("private-kept")
    printed = await asyncio.to_thread(
        any_server.deployment.manage, "ssetoken", "private-*", "--app", any_server.application.id
    )
    async with event_streams.listen(any_server, any_server.application, channel, token=printed.strip()) as stream:
        assert channel in await stream.statement()


# -- disconnects -------------------------------------------------------------------------------------------------------


async def test_disconnect_of_a_client_is_detected_at_once(any_server: servers.Server, name: Name) -> None:
    channel = name("news")
    async with event_streams.listen(any_server, any_server.application, channel) as stream:
        await stream.statement()
        assert await asyncio.to_thread(_is_occupied, any_server, channel)
    await asyncio.to_thread(waiting.until, lambda: not _is_occupied(any_server, channel), 2.0, "the channel is vacated")


def _is_occupied(server: servers.Server, channel: str) -> bool:
    with calls.Caller(server) as caller:
        return bool(caller.signed("GET", f"channels/{channel}").body["occupied"])


async def test_repeatedly_reset_client_gets_every_event_once(any_server: servers.Server, name: Name) -> None:
    channel = name("kept")
    numbers: list[int] = []
    cursor: str | None = None
    async with publishers.publishing(any_server, channel) as publisher:
        while publisher.published < 200:
            async with event_streams.listen(
                any_server, any_server.application, channel, last_event_id=cursor or "earliest"
            ) as stream:
                told = await stream.statement()
                assert cursor is None or told[channel]["recovered"], told
                numbers += await stream.numbers(13)
                cursor = stream.last_event_id
                stream.reset()
    async with event_streams.listen(any_server, any_server.application, channel, last_event_id=cursor) as stream:
        await stream.statement()
        numbers += await stream.numbers(publisher.published - len(numbers))
    assert numbers == list(range(publisher.published))


# -- killed workers ----------------------------------------------------------------------------------------------------


async def test_clients_of_a_killed_worker_recover_missed_events_from_another(
    start: Start, fleet: servers.Fleet, name: Name
) -> None:
    server = start("gunicorn", keeping(fleet))
    channel, other = name("kept"), name("kept")
    followers: list[asyncio.Task[list[int]]] = []
    async with publishers.publishing(server, channel) as publisher:
        enough = asyncio.Event()
        followers += [asyncio.create_task(_follow(server, [other, channel], publisher, enough)) for _ in range(12)]
        await publisher.reach(50)
        for _ in range(3):
            before = server.workers()
            victim = before[0]
            os.kill(victim, signal.SIGKILL)
            reached = publisher.published + 50
            await publisher.reach(reached)
            await asyncio.to_thread(
                waiting.until,
                lambda victim=victim: len(server.workers()) == 4 and victim not in server.workers(),
                20.0,
                "the dead worker is replaced",
            )
    enough.set()
    for received in await asyncio.gather(*followers):
        assert received == list(range(publisher.published))


async def _follow(
    server: servers.Server, channels: list[str], publisher: publishers.Publisher, enough: asyncio.Event
) -> list[int]:
    """Read and reconnect, as EventSource does, until all published events were received."""
    numbers: list[int] = []
    cursor: str | None = "earliest"
    while not (enough.is_set() and len(numbers) >= publisher.published):
        with contextlib.suppress(event_streams.Ended, OSError, asyncio.IncompleteReadError):
            async with event_streams.listen(server, server.application, *channels, last_event_id=cursor) as stream:
                told = await stream.statement()
                if cursor != "earliest":
                    assert all(one["recovered"] for one in told.values()), told
                cursor = stream.last_event_id
                while not (enough.is_set() and len(numbers) >= publisher.published):
                    with contextlib.suppress(TimeoutError):
                        numbers.append((await stream.next(within=0.5)).number)
                        cursor = stream.last_event_id
    return numbers


async def test_deleted_log_is_not_reported_as_recovered(start: Start, fleet: servers.Fleet, name: Name) -> None:
    server = start("gunicorn", keeping(fleet))
    channel = name("kept")
    async with contextlib.AsyncExitStack() as stack:
        streams = [
            await stack.enter_async_context(event_streams.listen(server, server.application, channel)) for _ in range(8)
        ]
        for stream in streams:
            await stream.statement()
        await asyncio.to_thread(calls.publish, server, channel, "tick", "0")
        for stream in streams:
            assert await stream.numbers(1) == [0]
        for path in server.deployment.log_files():
            path.unlink()
        for attempt in itertools.count():
            with calls.Caller(server) as caller:
                event = {"name": "tick", "channels": [channel], "data": str(attempt)}
                answer = await asyncio.to_thread(caller.signed, "POST", "events", event)
            if answer.status == 200:
                break
            await asyncio.sleep(0.2)
        assert all(await asyncio.gather(*(stream.ended(within=15) for stream in streams)))
    for stream in streams:
        async with event_streams.listen(
            server, server.application, channel, last_event_id=stream.last_event_id
        ) as again:
            told = (await again.statement())[channel]
            assert (told["recovered"], told["reason"]) == (False, "epoch_changed")


async def test_history_survives_a_restart_of_the_server(start: Start, fleet: servers.Fleet, name: Name) -> None:
    deployment = keeping(fleet)
    channel = name("kept")
    first = start("uvicorn", deployment)
    async with event_streams.listen(first, first.application, channel) as stream:
        await stream.statement()
        await asyncio.to_thread(calls.publish, first, channel, "tick", "1")
        assert await stream.numbers(1) == [1]
        await asyncio.to_thread(calls.publish, first, channel, "tick", "2")
        await asyncio.to_thread(first.stop)
    second = start("gunicorn", deployment)
    cursor = f"{str(stream.last_event_id).rpartition(':')[0]}:1"
    async with event_streams.listen(second, second.application, channel, last_event_id=cursor) as stream:
        assert (await stream.statement())[channel]["recovered"]
        assert await stream.numbers(1) == [2]


# -- stop and reload --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["uvicorn", "gunicorn"])
@pytest.mark.parametrize("how", ["SIGTERM", "Ctrl+C"])
async def test_stop_ends_open_streams_promptly_and_cleanly(
    start: Start, fleet: servers.Fleet, name: Name, command: str, how: str
) -> None:
    server = start(command, keeping(fleet))
    async with contextlib.AsyncExitStack() as stack:
        streams = [
            await stack.enter_async_context(event_streams.listen(server, server.application, name("kept")))
            for _ in range(12)
        ]
        for stream in streams:
            await stream.statement()
        begun = time.monotonic()
        if how == "Ctrl+C":
            server.interrupt()
        else:
            server.send_signal(signal.SIGTERM)
        assert all(await asyncio.gather(*(stream.ended() for stream in streams)))
        await asyncio.to_thread(server.wait_until_gone, PROMPT)
        assert time.monotonic() - begun < PROMPT


async def test_stop_does_not_wait_for_a_stalled_reader(start: Start, fleet: servers.Fleet, name: Name) -> None:
    server = start("uvicorn", keeping(fleet))
    channel = name("kept")
    async with event_streams.listen(server, server.application, channel) as stalled:
        await stalled.statement()
        stalled.stop_reading()
        with calls.Caller(server) as caller:
            for _ in range(100):
                await asyncio.to_thread(caller.publish, channel, "tick", "x" * 60_000)
        server.send_signal(signal.SIGTERM)
        await asyncio.to_thread(server.wait_until_gone, PROMPT)


async def test_edited_file_reloads_promptly_with_an_open_stream(
    start: Start, fleet: servers.Fleet, tmp_path: Path, name: Name
) -> None:
    root = tmp_path / "clone"
    root.mkdir()
    for part in ("apps", "myproject"):
        shutil.copytree(deployments.REPOSITORY / part, root / part, ignore=shutil.ignore_patterns("__pycache__"))
    server = start("reload", keeping(fleet), root=root)
    old = set(server.workers())
    channel = name("kept")
    async with event_streams.listen(server, server.application, channel) as stream:
        await stream.statement()
        edited = root / "myproject" / "asgi.py"
        edited.write_text(edited.read_text() + "\n# edited\n")
        assert await stream.ended()

    def reloaded() -> bool:
        return bool(set(server.workers()) - old) and server.is_ready()

    await asyncio.to_thread(waiting.until, reloaded, 15.0, "the new code serves")
    async with event_streams.listen(server, server.application, channel, last_event_id=stream.last_event_id) as again:
        assert (await again.statement())[channel]["recovered"]
