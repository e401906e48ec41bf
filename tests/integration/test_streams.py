"""Streams in unmodified pusher-js, with the plugin and over SSE, while workers are killed and restarted."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import json
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from tests.harness import calls, deployments, event_streams, pusherjs, servers
from tests.kills import streams as proof
from tests.unit.docs import pages

Name = Callable[[str], str]

PATIENCE_S = 120.0
SHORT_LEASE_S = 3
TOKENS = 150


class Page:
    """A process of tests/clients/stream.mjs, and what it shows."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.shown: dict[str, dict[str, Any]] = {}  # the newest report of each stream
        self.subscriptions = 0
        self._process = process
        self._changed = asyncio.Condition()

    async def read(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            report = json.loads(line)
            async with self._changed:
                if "subscribed" in report:
                    self.subscriptions += 1
                else:
                    self.shown[report["id"]] = report
                self._changed.notify_all()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S), self._changed:
            await self._changed.wait_for(condition)

    async def until_state(self, stream: str, state: str) -> str:
        """The text in this state."""
        await self.until(lambda: self.shown.get(stream, {}).get("state") == state)
        return str(self.shown[stream]["text"])

    def cancel(self, stream: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"cancel": stream}).encode() + b"\n")


@contextlib.asynccontextmanager
async def page(
    runtime: pusherjs.Runtime, server: servers.Server, channel: str, **environment: str
) -> AsyncIterator[Page]:
    process = await asyncio.create_subprocess_exec(
        runtime.executable,
        str(pusherjs.CLIENTS / "stream.mjs"),
        cwd=pusherjs.CLIENTS,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        limit=pusherjs.LINE_BYTES,
        env={
            **os.environ,
            "HOST": servers.HOST,
            "PORT": str(server.port),
            "KEY": server.application.key,
            "AUTH": server.application.secret,
            "CHANNEL": channel,
            **environment,
        },
    )
    shown = Page(process)
    reading = asyncio.create_task(shown.read())
    try:
        await shown.until(lambda: shown.subscriptions > 0)
        yield shown
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.kill()
        await process.wait()
        await reading


class Producer:
    """A producer that speaks HTTP, and repeats a request until it has the answer, as `Retry-After` says."""

    def __init__(self, server: servers.Server, channel: str, stream: str) -> None:
        self._server = server
        self._path = f"channels/{channel}/streams"
        self.stream = stream

    def call(self, path: str, **fields: object) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            wait_s = 0.1
            with contextlib.suppress(OSError, http.client.HTTPException), calls.Caller(self._server) as caller:
                answer = caller.signed("POST", f"{self._path}{path}", fields)
                if answer.status == 200:
                    return dict(answer.body)
                assert answer.status in (429, 503), answer
                wait_s = float(answer.headers["retry-after"])
            time.sleep(wait_s)
        raise AssertionError(f"No answer within {PATIENCE_S} s")

    def open(self, **fields: object) -> dict[str, Any]:
        return self.call("", name="answer", id=self.stream, **fields)

    def append(self, seq: int, text: str, **fields: object) -> dict[str, Any]:
        return self.call(f"/{self.stream}/append", seq=seq, text=text, **fields)

    def append_within_the_lease(self, seq: int, text: str, **fields: object) -> None:
        """Append, and open the stream again while its short lease is over before the request arrives."""
        while not self.append(seq, text, **fields)["accepted"]:
            self.open()

    def end(self, seq: int, state: str = "done") -> dict[str, Any]:
        return self.call(f"/{self.stream}/append", seq=seq, state=state)


@pytest.fixture(scope="module")
def server(fleet: servers.Fleet) -> servers.Server:
    """Four workers, with a lease and a rate of appends that no test reaches."""
    return fleet.start("gunicorn", _deployment(fleet, lease_s=600, appends=10_000))


@pytest.fixture(scope="module")
def impatient_server(fleet: servers.Fleet) -> servers.Server:
    """With the shortest lease, and a rate of appends that a test reaches."""
    return fleet.start("uvicorn", _deployment(fleet, lease_s=SHORT_LEASE_S, appends=2))


def _deployment(fleet: servers.Fleet, *, lease_s: int, appends: int) -> deployments.Deployment:
    deployment = fleet.deployment(FANFARE_STREAM_LEASE=str(lease_s), FANFARE_STREAM_MAX_APPENDS=str(appends))
    deployment.shell(
        f"application = Application.objects.get(app_id={deployment.application.id!r})\n"
        "application.rules.create(pattern='*kept-*', history_size=100, history_seconds=600, stream_cancel=True)"
    )
    return deployment


async def test_every_page_has_the_whole_text_while_workers_are_killed_and_restarted(
    server: servers.Server, pusher_js: pusherjs.Runtime, name: Name
) -> None:
    """Plain pusher-js, the plugin and SSE, on a channel with a history and one without."""
    kept, plain = name("private-kept-chat"), name("private-chat")
    tokens = [f"token {number} «🎉», " for number in range(1, TOKENS + 1)]
    text = "".join(tokens)

    async def produce(channel: str) -> None:
        producer = Producer(server, channel, "a")
        await asyncio.to_thread(producer.open, meta={"by": "test"})
        for number, token in enumerate(tokens, 1):
            answer = await asyncio.to_thread(producer.append, number, token)
            assert answer["state"] == "open"
            assert answer["seq"] == number
        assert (await asyncio.to_thread(producer.end, TOKENS))["state"] == "done"

    async with contextlib.AsyncExitStack() as stack:
        pages = [
            await stack.enter_async_context(page(pusher_js, server, channel, **environment))
            for channel in (kept, plain)
            for environment in ({}, {"PLUGIN": "1"})
        ]
        producing = [asyncio.create_task(produce(channel)) for channel in (kept, plain)]
        await pages[0].until(lambda: pages[0].shown.get("a", {}).get("text", "") != "")
        for worker in server.workers()[:-1]:  # the last one takes the connections that come back
            os.kill(worker, signal.SIGKILL)
        await pages[0].until(lambda: pages[0].shown["a"]["text"].count(",") > TOKENS / 2)
        server.send_signal(signal.SIGHUP)
        late = [await stack.enter_async_context(page(pusher_js, server, channel)) for channel in (kept, plain)]
        await asyncio.gather(*producing)
        late.append(await stack.enter_async_context(page(pusher_js, server, plain)))
        for each in pages:
            await each.until(lambda each=each: each.subscriptions > 1)  # type: ignore[misc]
        for each in (*pages, *late):
            assert await each.until_state("a", "done") == text
        # The reload may have closed its connection, too, after the subscription or after the event.
        assert 1 <= late[-1].shown["a"]["events"] <= late[-1].subscriptions, "one event with everything"
        assert late[-1].shown["a"]["meta"] == {"by": "test"}

    with calls.Caller(server) as caller:
        [item] = caller.signed("GET", f"channels/{kept}/history").body["items"]
        assert json.loads(item["data"])["text"] == text
        found = caller.signed("GET", f"channels/{plain}/streams/a").body
    assert found == {"id": "a", "state": "done", "seq": TOKENS, "length": len(text.encode("utf-16-le")) // 2} | {
        "text": text
    }


async def test_event_stream_gets_the_text_so_far_and_the_rest(server: servers.Server, name: Name) -> None:
    channel = name("kept-chat")
    producer = Producer(server, channel, "a")
    await asyncio.to_thread(producer.open)
    await asyncio.to_thread(producer.append, 1, "one ")
    async with event_streams.listen(server, server.application, channel) as stream:
        await stream.statement()
        shown, texts = "", []
        for number in (2, 3):
            await asyncio.to_thread(producer.append, number, f"{number} ")
        await asyncio.to_thread(producer.end, 3)
        state = "open"
        while state == "open":
            event = json.loads((await stream.next(PATIENCE_S)).data["data"])
            shown = shown[: event["at"]] + event["text"]
            state = event["state"]
            texts.append(event["text"])
    assert (shown, state) == ("one 2 3 ", "done")
    assert texts[0] == "one "


@pytest.mark.parametrize("environment", [{}, {"PLUGIN": "1"}], ids=["pusher-js", "plugin"])
async def test_reader_cancels_and_the_producer_learns_of_it(
    server: servers.Server, pusher_js: pusherjs.Runtime, name: Name, environment: dict[str, str]
) -> None:
    channel = name("private-kept-chat")
    producer = Producer(server, channel, "a")
    await asyncio.to_thread(producer.open)
    async with page(pusher_js, server, channel, **environment) as reader:
        await asyncio.to_thread(producer.append, 1, "half")
        await reader.until(lambda: reader.shown.get("a", {}).get("text") == "half")
        reader.cancel("a")
        assert await reader.until_state("a", "cancelled") == "half"
    answer = await asyncio.to_thread(producer.append, 2, "more")
    assert answer == {"accepted": False, "id": "a", "state": "cancelled", "seq": 1, "length": 4}
    assert (await asyncio.to_thread(producer.call, "/a/cancel"))["accepted"] is False


async def test_silent_producer_leaves_an_interrupted_stream_that_a_second_one_continues(
    impatient_server: servers.Server, pusher_js: pusherjs.Runtime, name: Name
) -> None:
    channel = name("private-kept-chat")
    producer = Producer(impatient_server, channel, "a")
    await asyncio.to_thread(producer.open)
    async with page(pusher_js, impatient_server, channel) as reader:
        await asyncio.to_thread(producer.append_within_the_lease, 1, "half")
        assert await reader.until_state("a", "interrupted") == "half"
        again = await asyncio.to_thread(producer.open)
        assert (again["accepted"], again["state"], again["seq"], again["length"]) == (True, "open", 1, 4)
        await asyncio.to_thread(producer.append_within_the_lease, 2, " whole", state="done")
        assert await reader.until_state("a", "done") == "half whole"
    with calls.Caller(impatient_server) as caller:
        [item] = caller.signed("GET", f"channels/{channel}/history").body["items"]
    assert json.loads(item["data"])["state"] == "done"


def test_producer_that_obeys_retry_after_loses_nothing_at_the_rate_limit(
    impatient_server: servers.Server, name: Name
) -> None:
    channel = name("chat")
    with calls.Caller(impatient_server) as caller:
        path = f"channels/{channel}/streams/unknown/append"
        for _ in range(1_000):
            answer = caller.signed("POST", path, {"seq": 1, "text": "x"})
            if answer.status == 429:
                break
    assert (answer.status, answer.body["code"]) == (429, "too_many_appends")
    assert "3, the allowed maximum is 2" in answer.body["error"]
    producer = Producer(impatient_server, channel, "a")
    producer.open()
    for number in range(1, 7):
        producer.append_within_the_lease(number, f"{number} ")
    with calls.Caller(impatient_server) as caller:
        assert caller.signed("GET", f"channels/{channel}/streams/a").body["text"] == "1 2 3 4 5 6 "


async def test_texts_are_exact_under_kills_restarts_and_cuts(fleet: servers.Fleet) -> None:
    """The short form of `python -m tests.kills.streams`."""
    options = argparse.Namespace(streams=20, rate=20.0, seconds=10.0, every=2.5, window=40)
    assert await proof.play(options, fleet) == []


def test_bounds_have_both_numbers(server: servers.Server, name: Name) -> None:
    channel = name("chat")
    with calls.Caller(server) as caller:
        path = f"channels/{channel}/streams"
        assert caller.signed("POST", path, {"name": "answer", "id": "a"}).status == 200
        long = caller.signed("POST", f"{path}/a/append", {"seq": 1, "text": "x" * 262_145})
        assert (long.status, long.body["code"]) == (413, "stream_too_long")
        assert "262145" in long.body["error"] and "262144" in long.body["error"]
        for number in range(99):
            assert caller.signed("POST", path, {"name": "answer", "id": str(number)}).status == 200
        many = caller.signed("POST", path, {"name": "answer", "id": "b"})
        assert (many.status, many.body["code"]) == (400, "too_many_streams")
        assert "100 are open, the allowed maximum is 100" in many.body["error"]


# -- the JavaScript of the guides --------------------------------------------------------------------------------------

# A page of a user: the snippets see `pusher`, `channel` and the project's function `show`.
PROGRAM = """
import Pusher from "pusher-js";
import { createHmac } from "node:crypto";
const { KEY, SECRET, PORT } = process.env;
const open = (user) => new Pusher(KEY, {
  cluster: "", wsHost: "127.0.0.1", wsPort: Number(PORT), forceTLS: false, enabledTransports: ["ws"],
  channelAuthorization: {
    customHandler: ({ socketId, channelName }, callback) => {
      const channel_data = JSON.stringify({ user_id: user, user_info: { name: user } });
      const signed = createHmac("sha256", SECRET).update(`${socketId}:${channelName}:${channel_data}`).digest("hex");
      callback(null, { auth: `${KEY}:${signed}`, channel_data });
    },
  },
});
function page(user) {
  const pusher = open(user);
  const show = (...what) => console.log(JSON.stringify([user, ...what]));
  CLIENT_EVENTS
  MEMBERS
  STREAMS
  return {
    cancel: (id) => { CANCEL },
    type: () => { STATE },
    ready: new Promise((resolve) => channel.bind("pusher:subscription_succeeded", resolve)),
  };
}
const ann = page("ann");
await ann.ready;
const bob = page("bob");
await bob.ready;
bob.type();
for await (const id of process.stdin) ann.cancel(String(id).trim());
"""


async def test_snippets_of_client_events_members_and_streams_do_what_they_say(
    server: servers.Server, pusher_js: pusherjs.Runtime, name: Name
) -> None:
    channel = name("presence-kept-room")
    code = (
        PROGRAM.replace("CLIENT_EVENTS", pages.snippet("docs/how-to/client-events.md", "client-typing"))
        .replace("MEMBERS", pages.snippet("docs/how-to/presence.md", "fanfare:member_updated"))
        .replace("STREAMS", pages.snippet("docs/how-to/stream-answers.md", "texts[id]"))
        .replace("CANCEL", pages.snippet("docs/how-to/stream-answers.md", "client-fanfare-cancel"))
        .replace("STATE", pages.snippet("docs/how-to/presence.md", "client-fanfare-state"))
        .replace("presence-room-7", channel)
    )
    process = await asyncio.create_subprocess_exec(
        pusher_js.executable,
        "--input-type=module",
        "--eval",
        code,
        cwd=pusherjs.CLIENTS,
        env={
            "PATH": "/usr/bin:/bin",
            "KEY": server.application.key,
            "SECRET": server.application.secret,
            "PORT": str(server.port),
        },
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    shown: list[list[Any]] = []

    async def until(*expected: list[Any]) -> None:
        assert process.stdout is not None
        while not all(one in shown for one in expected):
            line = await process.stdout.readline()
            assert line, f"the program ended; it has shown {shown}"
            shown.append(json.loads(line))

    first, second = Producer(server, channel, "first"), Producer(server, channel, "second")
    try:
        async with asyncio.timeout(PATIENCE_S):
            await until(["ann", "bob", True], ["ann", "bob", {"name": "bob", "state": {"typing": True}}])
            await asyncio.to_thread(first.open)
            await asyncio.to_thread(first.append, 1, "The first")
            await asyncio.to_thread(first.append, 2, " words", state="done")
            await until(*([user, "first", "The first words", "done"] for user in ("ann", "bob")))
            await asyncio.to_thread(second.open)
            await asyncio.to_thread(second.append, 1, "half")
            await until(["ann", "second", "half", "open"])
            process.stdin.write(b"second\n")
            await until(*([user, "second", "half", "cancelled"] for user in ("ann", "bob")))
    finally:
        process.stdin.close()
        process.kill()
        await process.wait()
