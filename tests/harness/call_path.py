"""The functions of the project that one publish and one subscribe call, in order.

    python -m tests.harness.call_path

Starts a server in this process, subscribes over a WebSocket, publishes from a thread, and prints all calls until the
client receives its frame, as JSON: `{"publish": [[FILE, FUNCTION], …], "subscribe": …}`. Files are relative to
`apps/fanfare`. Each is repeated, and the one with the fewest calls is printed: the first one fills caches, and timers
of the server run during others.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import tempfile
import threading
from pathlib import Path
from types import FrameType
from typing import Any

PACKAGE = f"{Path(__file__).resolve().parents[2] / 'apps' / 'fanfare'}/"
PAUSE_S = 0.05  # the server's own tasks that follow a request end in this time
REPEATED = 10


class Recorder:
    """Records calls of the package in all threads that start after it was installed."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.is_on = False

    def install(self) -> None:
        threading.setprofile(self._called)
        sys.setprofile(self._called)

    def _called(self, frame: FrameType, event: str, _argument: Any) -> None:
        code = frame.f_code
        if self.is_on and event == "call" and code.co_filename.startswith(PACKAGE):
            self.calls.append((code.co_filename.removeprefix(PACKAGE), code.co_qualname))

    @contextlib.asynccontextmanager
    async def recording(self) -> Any:
        await asyncio.sleep(PAUSE_S)
        self.calls = []
        self.is_on = True
        try:
            yield self.calls
        finally:
            self.is_on = False


async def record(recorder: Recorder) -> dict[str, list[tuple[str, str]]]:
    import uvicorn
    import websockets

    from fanfare import publish
    from myproject.asgi import application

    server = uvicorn.Server(uvicorn.Config(application, port=0, log_level="warning", lifespan="on"))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    found: dict[str, list[list[tuple[str, str]]]] = {"subscribe": [], "publish": []}
    async with websockets.connect(f"ws://127.0.0.1:{port}/app/key?protocol=7") as client:
        await client.recv()
        for number in range(REPEATED):
            async with recorder.recording() as calls:
                message = {"event": "pusher:subscribe", "data": {"channel": f"orders-{number}"}}
                await client.send(json.dumps(message))
                await client.recv()
            found["subscribe"].append(calls)
        for number in range(REPEATED):
            async with recorder.recording() as calls:
                publisher = threading.Thread(target=publish, args=("orders-0", "created", {"id": number}))
                publisher.start()
                await client.recv()
                await asyncio.to_thread(publisher.join)
            found["publish"].append(calls)
    server.should_exit = True
    await serving
    return {walk: min(several, key=len) for walk, several in found.items()}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {
            "DJANGO_SETTINGS_MODULE": "myproject.settings",
            "FANFARE_DATA_DIR": folder,
            "FANFARE_APPS": "1:key:secret",
            "FANFARE_SECRET_KEY": "not-secret" * 6,
        }
        recorder = Recorder()
        recorder.install()
        import django
        from django.core.management import call_command

        django.setup()
        call_command("migrate", verbosity=0)
        print(json.dumps(asyncio.run(record(recorder))))


if __name__ == "__main__":
    main()
