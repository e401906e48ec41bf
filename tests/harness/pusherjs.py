"""SDKs of npm in Node, driven from Python: pusher-js, Laravel Echo, and `pusher` for backends.

The JavaScript side is tests/clients/driver.mjs.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
from collections.abc import AsyncIterator
from typing import Any, Self

from tests.harness import parts, servers, sockets
from tests.harness.deployments import REPOSITORY

CLIENTS = REPOSITORY / "tests" / "clients"
INSTALL_SECONDS = 120
LINE_BYTES = 4 * 1024 * 1024  # a line of output may hold a whole event or a large presence snapshot

Happening = dict[str, Any]  # one line of the driver's output


class Runtime:
    """Node with the SDKs of tests/clients installed; what is missing is installed from the lock file once."""

    def __init__(self) -> None:
        self.executable = parts.executable("node", "nodejs")

    def __enter__(self) -> Self:
        wanted = json.loads((CLIENTS / "package.json").read_text())["dependencies"]
        if not all((CLIENTS / "node_modules" / package).is_dir() for package in wanted):
            npm = parts.executable("npm")
            command = [npm, "ci", "--no-audit", "--no-fund"]
            installed = subprocess.run(
                command, cwd=CLIENTS, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False
            )
            if installed.returncode != 0:
                parts.absent(f"the client SDKs could not be installed: {installed.stderr.strip()[-500:]}")
        return self

    def __exit__(self, *_: object) -> None: ...

    @contextlib.asynccontextmanager
    async def node(self) -> AsyncIterator[Node]:
        """A Node process in which a test makes its clients."""
        process = await asyncio.create_subprocess_exec(
            self.executable,
            str(CLIENTS / "driver.mjs"),
            cwd=CLIENTS,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            limit=LINE_BYTES,
        )
        node = Node(process)
        try:
            yield node
        finally:
            await node.close()


class Node:
    """One Node process with any number of objects of the SDKs."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._clients: dict[str, Client] = {}
        self._reader = asyncio.create_task(self._read())

    async def client(self, server: servers.Server, **options: Any) -> Client:
        """A new pusher-js client, not waited for. Options: see `_make`."""
        return await self._make("connect", server, **options)

    async def connected(self, server: servers.Server, **options: Any) -> Client:
        """A new pusher-js client that has a socket id."""
        return await self._with_socket_id(await self.client(server, **options))

    async def echo(self, server: servers.Server, **options: Any) -> Client:
        """A new Laravel Echo that has a socket id."""
        return await self._with_socket_id(await self._make("echo", server, **options))

    async def backend(self, server: servers.Server, **options: Any) -> Client:
        """The SDK for backends."""
        return await self._make("backend", server, **options)

    async def _make(
        self,
        kind: str,
        server: servers.Server,
        *,
        member: dict[str, Any] | None = None,
        user: dict[str, Any] | None = None,
        master_key: str = "",
        key: str = "",
    ) -> Client:
        """`member`: the channel_data on presence channels. `user`: who signs in. `master_key`: base64, of encrypted
        channels. `key`: another than the application's.
        """
        identifier = str(len(self._clients) + 1)
        client = self._clients[identifier] = Client(self, identifier)
        await client.do(
            kind,
            host=servers.HOST,
            port=server.port,
            application=server.application.id,
            key=key or server.application.key,
            secret=server.application.secret,
            member=member,
            user=user,
            master_key=master_key,
        )
        return client

    @staticmethod
    async def _with_socket_id(client: Client) -> Client:
        client.socket_id = (await client.state("connected"))["socket_id"]
        return client

    async def write(self, command: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command).encode() + b"\n")
        await self._process.stdin.drain()

    async def _read(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            happening = json.loads(line)
            self._clients[happening["id"]].happenings.put_nowait(happening)

    async def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()  # the driver ends with its input
        try:
            async with asyncio.timeout(5):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        await self._reader


class Client:
    """One object of an SDK. What happened to it is read in order, and what a test does not ask for is passed over."""

    def __init__(self, node: Node, identifier: str) -> None:
        self._node = node
        self._identifier = identifier
        self.socket_id = ""
        self.happenings: asyncio.Queue[Happening] = asyncio.Queue()

    async def do(self, action: str, **arguments: Any) -> None:
        await self._node.write({"do": action, "id": self._identifier, **arguments})

    async def next(self, within: float = sockets.PATIENCE, **wanted: Any) -> Happening:
        """The next happening that has all these fields."""
        async with asyncio.timeout(within):
            while True:
                happening = await self.happenings.get()
                if all(happening.get(field) == value for field, value in wanted.items()):
                    return happening

    async def state(self, state: str, within: float = sockets.PATIENCE) -> Happening:
        return await self.next(within, what="state", state=state)

    async def event(self, channel: str, event: str) -> Happening:
        return await self.next(what="event", channel=channel, event=event)

    async def subscribe(self, channel: str) -> Happening:
        """Subscribe and wait for the success."""
        await self.do("subscribe", channel=channel)
        return await self.event(channel, "pusher:subscription_succeeded")

    async def members(self, channel: str) -> Happening:
        """pusher-js's own list of who is in a presence channel."""
        await self.do("members", channel=channel)
        return await self.next(what="members", channel=channel)

    async def call(self, method: str, *arguments: Any) -> Any:
        """Of the SDK for backends: what a call answers, {"status", "body"} of a request. Raises Refused."""
        await self.do("call", call=method, **{"with": arguments})
        async with asyncio.timeout(sockets.PATIENCE):
            happening = await self.happenings.get()
        if happening["what"] == "refused":
            raise Refused(happening)
        return happening["answer"]


class Refused(Exception):
    """The SDK raised: `status` of the answer, where there was one, and its `body`."""

    def __init__(self, happening: Happening) -> None:
        super().__init__(happening["message"])
        self.status: int | None = happening["status"]
        self.body: str | None = happening["body"]
