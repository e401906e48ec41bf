"""The clients. Each subscribes to one channel through its own proxy and keeps a transcript."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import subprocess
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

from tests.harness import event_streams, proxies, pusherjs, servers
from tests.harness.deployments import Application
from tests.kills import transcripts

PLAIN, SESSION, PLUGIN, SSE = "pusher-js", "pusher-js with a token", "pusher-js with the plugin", "SSE"

# How long a client waits before it reconnects. pusher-js itself waits for a second.
JITTER_MS = 500
SSE_RECONNECT_S = (0.2, 1.0)
READY_S = 30.0


class Follower:
    """`kind`: one of the constants above."""

    def __init__(self, kind: str, channel: str, to: proxies.TcpProxy, application: Application) -> None:
        self.kind = kind
        self.channel = channel
        self.proxy = to
        self.transcript = transcripts.Transcript()
        self._application = application

    @contextlib.asynccontextmanager
    async def following(self, runtime: pusherjs.Runtime) -> AsyncIterator[Follower]:
        """Subscribe, and follow the channel until the end."""
        task = asyncio.create_task(self._listen() if self.kind == SSE else self._run(runtime))
        try:
            async with asyncio.timeout(READY_S):
                while not self.transcript.connections:
                    if task.done():
                        task.result()
                    await asyncio.sleep(0.02)
            yield self
            if task.done():
                task.result()
        finally:
            task.cancel()
            await asyncio.wait([task])

    # -- pusher-js in Node ---------------------------------------------------------------------------------------------

    async def _run(self, runtime: pusherjs.Runtime) -> None:
        script = "plugin.mjs" if self.kind == PLUGIN else "plain.mjs"
        process = await asyncio.create_subprocess_exec(
            runtime.executable,
            str(pusherjs.CLIENTS / script),
            cwd=pusherjs.CLIENTS,
            stdout=subprocess.PIPE,
            env={
                **os.environ,
                "HOST": servers.HOST,
                "PORT": str(self.proxy.port),
                "KEY": self._application.key,
                "AUTH": self._application.secret,
                "CHANNEL": self.channel,
                "TOKEN": uuid4().hex if self.kind == SESSION else "",
                "JITTER": str(JITTER_MS),
            },
        )
        try:
            assert process.stdout is not None
            while line := await process.stdout.readline():
                self._report(json.loads(line))
            raise AssertionError(f"{self.kind} ended unexpectedly")
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()

    def _report(self, report: dict[str, Any]) -> None:
        match report:
            case {"n": number}:
                self.transcript.received(number)
            case {"subscribed": _}:
                self.transcript.subscribed()
            case {"stream": {"recovered": True}}:
                self.transcript.recoveries += 1
            case {"reset": _, "reason": reason} | {"resume_failed": {"reason": reason}}:
                self.transcript.lost(reason)

    # -- Server-Sent Events --------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        """Reconnect with the last id, as EventSource does."""
        target = event_streams.path(self._application, [self.channel])
        last_event_id: str | None = None
        while True:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, TimeoutError, event_streams.Ended):
                async with event_streams.request(self.proxy, target, last_event_id=last_event_id) as stream:
                    assert stream.status == 200, (stream.status, stream.headers)
                    try:
                        while True:
                            self._event(await stream.next(within=READY_S))
                    finally:
                        last_event_id = stream.last_event_id or last_event_id
            await asyncio.sleep(random.uniform(*SSE_RECONNECT_S))

    def _event(self, event: event_streams.Event) -> None:
        if event.name == "message":
            self.transcript.received(json.loads(event.data["data"])["n"])
        elif event.name == "stream":
            stream = event.data["channels"][self.channel]
            self.transcript.subscribed()
            if stream["recovered"]:
                self.transcript.recoveries += 1
            elif stream["was_recovering"]:
                self.transcript.lost(stream["reason"])
