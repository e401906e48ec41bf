"""Own consumers and the channel layer beside the protocol, with the files of docs/how-to/own-consumers.md."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

from tests.harness import deployments, servers, sockets, waiting
from tests.unit.docs import pages

Start = Callable[..., servers.Server]

PAGE = pages.ROOT / "docs/how-to/own-consumers.md"
PATIENCE = 30.0
# The kernel distributes sockets unevenly, so they are opened in rounds until each worker has one.
ROUND, ROUNDS = 8, 50

# A consumer of a plain name for `runworker`.
WORKER = """
import os

from channels.consumer import AsyncConsumer


class Thumbnails(AsyncConsumer):
    async def thumbnail_wanted(self, message):
        done = {"type": "chat.message", "message": {"user": f"worker {os.getpid()}", "text": message["text"]}}
        await self.channel_layer.group_send("chat", done)
"""

ROUTER = """
from channels.routing import ChannelNameRouter, ProtocolTypeRouter

from chat.workers import Thumbnails

application = ProtocolTypeRouter({"channel": ChannelNameRouter({"thumbnails": Thumbnails.as_asgi()})})
"""

SEND = (
    "from asgiref.sync import async_to_sync; from channels.layers import get_channel_layer; layer = get_channel_layer()"
)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with the app of the page."""
    root = tmp_path_factory.mktemp("own") / "clone"
    root.mkdir()
    for part in ("apps", "myproject"):
        shutil.copytree(deployments.REPOSITORY / part, root / part, ignore=shutil.ignore_patterns("__pycache__"))
    for part in ("manage.py", "gunicorn.conf.py"):
        shutil.copy(deployments.REPOSITORY / part, root)
    (root / "apps/chat").mkdir()
    (root / "apps/chat/__init__.py").touch()
    (root / "apps/chat/workers.py").write_text(WORKER)
    (root / "apps/chat/asgi.py").write_text(ROUTER)
    for block in pages.blocks(PAGE):
        file = root / block.file
        if block.language == "diff":
            (known,) = re.findall(r"^ (.+)$", block.text, re.MULTILINE)
            (added,) = re.findall(r"^\+(.+)$", block.text, re.MULTILINE)
            text = file.read_text()
            assert text.count(f"{known}\n") == 1, f"the page and the settings differ: {known}"
            file.write_text(text.replace(f"{known}\n", f"{known}\n{added}\n"))
        else:
            file.write_text(block.text)
    return root


@contextlib.asynccontextmanager
async def chat(server: servers.Server, **headers: str) -> AsyncIterator[ClientConnection]:
    async with connect(
        f"ws://{servers.HOST}:{server.port}/chat/", additional_headers=headers, proxy=None, close_timeout=2
    ) as socket:
        yield socket


async def chats(server: servers.Server, stack: contextlib.AsyncExitStack) -> list[ClientConnection]:
    """Open sockets until every worker has one."""
    chatting: list[ClientConnection] = []
    for _ in range(ROUNDS):
        chatting += [await stack.enter_async_context(chat(server)) for _ in range(ROUND)]
        ports = [socket.local_address[1] for socket in chatting]
        if set(server.workers_of(ports).values()) == set(server.workers()):
            return chatting
    raise AssertionError(f"{len(chatting)} sockets did not reach every worker")


async def hears(socket: ClientConnection) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(await asyncio.wait_for(socket.recv(), PATIENCE))
    return said


def manage(server: servers.Server, project: Path, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "manage.py", *arguments],
        cwd=project,
        env=server.deployment.environment(PYTHONPATH=str(project / "apps")),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", ["uvicorn", "gunicorn", "daphne"])
async def test_group_messages_reach_consumers_on_every_worker(start: Start, project: Path, command: str) -> None:
    server = start(command, root=project)
    async with contextlib.AsyncExitStack() as stack:
        chatting = await chats(server, stack)
        for number in (0, len(chatting) - 1):
            await chatting[number].send(json.dumps({"text": f"hello {number}"}))
            for socket in chatting:
                assert await hears(socket) == {"user": "AnonymousUser", "text": f"hello {number}"}
        # From synchronous code in a process without a server.
        sent = {"type": "chat.message", "message": {"user": "shell", "text": "hi"}}
        code = f"{SEND}; async_to_sync(layer.group_send)('chat', {sent!r})"
        await asyncio.to_thread(manage, server, project, "shell", "--no-imports", "-c", code)
        for socket in chatting:
            assert await hears(socket) == sent["message"]
        # The protocol still works.
        async with sockets.connect(server) as client:
            await client.subscribe("news")
        async with sockets.open_raw(server, f"ws://{servers.HOST}:{server.port}/nothing/") as client:
            assert await client.closed() == 4005


async def test_page_of_an_unknown_host_is_refused(start: Start, project: Path) -> None:
    server = start("uvicorn", root=project)
    async with chat(server, Origin="http://localhost:3000"):
        pass
    with pytest.raises(InvalidStatus) as caught:
        async with chat(server, Origin="https://evil.example.net"):
            pass
    assert caught.value.response.status_code == 403


async def test_stop_with_open_consumers_is_prompt(start: Start, project: Path) -> None:
    server = start("gunicorn", root=project)
    async with chat(server) as socket:
        server.send_signal(signal.SIGTERM)
        await asyncio.to_thread(server.wait_until_gone, 8.0)
        await socket.wait_closed()


async def test_messages_to_a_plain_name_are_shared_by_runworkers(start: Start, project: Path, tmp_path: Path) -> None:
    server = start("gunicorn", root=project)
    environment = server.deployment.environment(
        DJANGO_SETTINGS_MODULE="worker_settings", PYTHONPATH=str(project / "apps")
    )
    (project / "worker_settings.py").write_text(
        "from myproject.settings import *\nASGI_APPLICATION = 'chat.asgi.application'\n"
    )
    with contextlib.ExitStack() as stack:
        for number in range(2):
            log = stack.enter_context((tmp_path / f"log{number}").open("wb"))
            worker = subprocess.Popen(
                [sys.executable, "manage.py", "runworker", "thumbnails"],
                cwd=project, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
            stack.callback(worker.wait, 10)
            stack.callback(worker.terminate)
        # The four of the server and these two.
        await asyncio.to_thread(
            waiting.until, lambda: server.health()[0] == 200 and _members(server) == 6, 20.0, "two more workers"
        )
        jobs = [f"picture {number}" for number in range(20)]
        async with chat(server) as socket:
            send = "async_to_sync(layer.send)('thumbnails', {'type': 'thumbnail.wanted', 'text': text})"
            code = f"{SEND}; [{send} for text in {jobs!r}]"
            await asyncio.to_thread(manage, server, project, "shell", "--no-imports", "-c", code)
            received = [await hears(socket) for _ in jobs]
    assert sorted(message["text"] for message in received) == sorted(jobs), "each once"


def _members(server: servers.Server) -> int:
    """The number of processes that hold a worker's lock."""
    return len(list((server.deployment.folder / "engine" / "workers").iterdir()))
