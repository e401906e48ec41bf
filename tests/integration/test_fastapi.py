"""A FastAPI application beside Fanfare and inside of it: the files and commands of docs/how-to/fastapi.md, as they
stand there."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness import calls, deployments, servers, sockets, waiting
from tests.unit.docs import pages

Start = Callable[..., servers.Server]

PAGE = pages.ROOT / "docs/how-to/fastapi.md"
TEXT = PAGE.read_text(encoding="utf-8")
FILES = {block.file: block.text for block in pages.blocks(PAGE)}
BESIDE, SAME = FILES["main.py"], FILES["apps/shop/main.py"]
(MOUNTS,) = re.findall(r"^    FANFARE_ASGI_MOUNTS=(.+)$", TEXT, re.MULTILINE)

START_SECONDS = 20.0
STOP_SECONDS = 15.0
CANNOT_START = 3  # the exit code of uvicorn and of gunicorn


def commands(program: str) -> list[list[str]]:
    return [shlex.split(line) for line in re.findall(rf"^    ({program} .+)$", TEXT, re.MULTILINE)]


def order(address: str, item: str) -> object:
    """Run the page's `curl` for this address and item. Raises where the answer is no success."""
    [words] = [
        words
        for words in commands("curl")
        if urllib.parse.urlsplit(words[3]).path == urllib.parse.urlsplit(address).path
    ]
    words = [address if word == words[3] else word.replace("tea", item) for word in words]
    answer = subprocess.run([*words, "--silent", "--fail"], capture_output=True, timeout=15, check=True).stdout
    return json.loads(answer)


@contextlib.contextmanager
def running(command: list[str], folder: Path, environment: dict[str, str], port: int) -> Iterator[None]:
    """A server of another program, for as long as the block."""
    program, *arguments = command
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [str(Path(sys.executable).parent / program), *arguments],
            cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip

        def answers() -> bool:
            assert process.poll() is None, (folder / "log").read_text()
            try:
                with urllib.request.urlopen(f"http://{servers.HOST}:{port}/openapi.json", timeout=2) as response:
                    return bool(response.status == 200)
            except OSError:
                return False

        try:
            waiting.until(answers, START_SECONDS, " ".join(command))
            yield
        finally:
            process.terminate()
            process.wait(STOP_SECONDS)


# -- beside ----------------------------------------------------------------------------------------------------------


async def test_an_application_with_a_server_of_its_own_publishes_over_http(
    uvicorn: servers.Server, tmp_path: Path
) -> None:
    (tmp_path / "main.py").write_text(BESIDE)
    command, _ = commands("uvicorn")
    assert command[:-1] == ["uvicorn", "main:app", "--reload", "--port"]
    port = servers.free_port()
    credentials = {
        "FANFARE_APP_ID": uvicorn.application.id,
        "FANFARE_APP_KEY": uvicorn.application.key,
        "FANFARE_APP_SECRET": uvicorn.application.secret,
        "FANFARE_PORT": str(uvicorn.port),
    }
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(deployments.OWN_PREFIXES)}
    async with sockets.connect(uvicorn) as socket:
        await socket.subscribe("orders")
        with running([*command[:-1], str(port)], tmp_path, {**inherited, **credentials}, port):
            assert await asyncio.to_thread(order, f"http://{servers.HOST}:{port}/orders", "tea") == {"item": "tea"}
        assert (await socket.expect("created", "orders")).decoded == {"item": "tea"}


# -- mounted ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A clone with the page's app in it."""
    root = tmp_path / "clone"
    root.mkdir()
    for part in ("apps", "myproject"):
        shutil.copytree(deployments.REPOSITORY / part, root / part, ignore=shutil.ignore_patterns("__pycache__"))
    for part in ("manage.py", "gunicorn.conf.py"):
        shutil.copy(deployments.REPOSITORY / part, root)
    (root / "apps/shop").mkdir()
    (root / "apps/shop/main.py").write_text(SAME)
    return root


def test_the_page_starts_the_server_as_always() -> None:
    _, command = commands("uvicorn")
    assert command == ["uvicorn", servers.APPLICATION, "--reload"]
    assert servers.COMMANDS["reload"](8000)[: len(command)] == command


@pytest.mark.parametrize("command", ["reload", "gunicorn", "daphne"])
async def test_a_mounted_application_publishes_in_process(
    start: Start, fleet: servers.Fleet, project: Path, command: str
) -> None:
    server = start(command, fleet.deployment(FANFARE_ASGI_MOUNTS=MOUNTS), root=project)
    items = [f"tea {number}" for number in range(8)]
    async with sockets.connect(server) as socket:
        await socket.subscribe("orders")
        for item in items:
            assert await asyncio.to_thread(order, server.url("/shop/orders"), item) == {"item": item}
            assert (await socket.expect("created", "orders")).decoded == {"item": item}
    with urllib.request.urlopen(server.url("/shop/docs"), timeout=15) as response:
        assert "/shop/openapi.json" in response.read().decode()


LIFESPAN = """
import asyncio
import contextlib

from fastapi import FastAPI, WebSocket, WebSocketDisconnect

from fanfare import apublish


@contextlib.asynccontextmanager
async def lifespan(app):
    await apublish("orders", "opened", {})
    yield {"greeting": "hello"}
    print("the shop is closed", flush=True)


app = FastAPI(lifespan=lifespan)


@app.websocket("/talk")
async def talk(socket: WebSocket):
    await socket.accept()
    await socket.send_text(socket.state.greeting)
    with contextlib.suppress(WebSocketDisconnect):
        await socket.receive_text()
"""


@pytest.mark.parametrize("command", ["uvicorn", "gunicorn", "daphne"])
async def test_its_lifespan_is_run_in_every_worker(
    start: Start, fleet: servers.Fleet, project: Path, command: str
) -> None:
    (project / "apps/shop/main.py").write_text(LIFESPAN)
    server = start(command, fleet.deployment(FANFARE_ASGI_MOUNTS=MOUNTS), root=project)
    async with sockets.open_raw(server, f"ws://{servers.HOST}:{server.port}/shop/talk") as socket:
        assert await socket.websocket.recv() == "hello"
        await asyncio.to_thread(server.stop)
    assert server.log_text().count("the shop is closed") == server.expected_workers


async def test_a_start_that_fails_leaves_the_workers_running(start: Start, fleet: servers.Fleet, project: Path) -> None:
    """With gunicorn a worker that fails to boot would end the master."""
    failing = LIFESPAN.replace("await apublish", "raise RuntimeError('the till is empty')\n    await apublish")
    (project / "apps/shop/main.py").write_text(failing)
    server = start("gunicorn", fleet.deployment(FANFARE_ASGI_MOUNTS=MOUNTS), root=project)
    server.tracebacks_expected = "FastAPI reports its failed start with one"
    sentence = "FANFARE_ASGI_MOUNTS: /shop=shop.main:app did not start: RuntimeError: the till is empty"
    assert sentence in server.log_text()
    status, answer = server.health()
    assert (status, answer["checks"]["mounts"]) == (200, {"ok": False, "reason": sentence})
    with calls.Caller(server) as caller:
        assert caller.call("GET", "/shop/items").status == 503
    async with sockets.connect(server) as socket:
        await socket.subscribe("news")


@pytest.mark.parametrize("command", ["uvicorn", "gunicorn"])
def test_a_mount_without_a_module_stops_the_server_with_a_sentence(
    fleet: servers.Fleet, project: Path, command: str
) -> None:
    (project / "apps/shop/main.py").write_text(SAME)
    program, *arguments = servers.COMMANDS[command](servers.free_port())
    ended = subprocess.run(
        [str(Path(sys.executable).parent / program), *arguments],
        cwd=project,
        env=fleet.deployment().environment(FANFARE_ASGI_MOUNTS="/shop=shop.man:app", PYTHONPATH=str(project / "apps")),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    # gunicorn ends from the handler of a signal: where that comes while it forks, its own exception is a plain 1.
    assert ended.returncode in ((CANNOT_START, 1) if command == "gunicorn" else (CANNOT_START,))
    assert "FANFARE_ASGI_MOUNTS has '/shop=shop.man:app': there is no module" in ended.stderr + ended.stdout
