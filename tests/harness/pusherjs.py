"""The npm SDKs in Node, driven from Python: pusher-js, Laravel Echo and the backend SDK `pusher`.

The JavaScript side is tests/clients/driver.mjs.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any, Self

from tests.harness import parts, servers, sockets
from tests.harness.deployments import REPOSITORY, Application

CLIENTS = REPOSITORY / "tests" / "clients"
INSTALL_SECONDS = 120
MODULE_SECONDS = 30.0
LINE_BYTES = 4 * 1024 * 1024  # one line of output can hold a large event or presence snapshot

# Builds the module on its input. Vue warns in the console where its three constants are missing.
BUNDLE = """
const built = require("esbuild").buildSync({
  stdin: { contents: require("node:fs").readFileSync(0, "utf8"), loader: "jsx", resolveDir: "." },
  bundle: true,
  write: false,
  jsx: "automatic",
  define: {
    "process.env.NODE_ENV": '"development"',
    __VUE_OPTIONS_API__: "false",
    __VUE_PROD_DEVTOOLS__: "false",
    __VUE_PROD_HYDRATION_MISMATCH_DETAILS__: "false",
  },
});
process.stdout.write(built.outputFiles[0].text);
"""

Report = dict[str, Any]  # one line of the driver's output


class Runtime:
    """Node with the packages of tests/clients; missing ones are installed from the lock file."""

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

    @contextlib.contextmanager
    def module(self, code: str, **environment: str) -> Iterator[Iterator[str]]:
        """Run a module in Node; the lines that it prints. It is ended after the block."""
        process = subprocess.Popen(
            [self.executable, "--input-type=module"],
            cwd=CLIENTS,
            env={"PATH": "/usr/bin:/bin", **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        timer = threading.Timer(MODULE_SECONDS, process.kill)
        with process:
            timer.start()
            try:
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write(code)
                process.stdin.close()
                yield (line.rstrip("\n") for line in process.stdout)
            finally:
                timer.cancel()
                process.kill()

    def bundle(self, code: str) -> str:
        """Build a module with JSX for a page, as a script, with the development versions of React and Vue."""
        command = [self.executable, "-e", BUNDLE]
        built = subprocess.run(command, cwd=CLIENTS, input=code, capture_output=True, text=True, check=False)
        assert built.returncode == 0, built.stderr
        return built.stdout

    @contextlib.asynccontextmanager
    async def node(self, *, plugin: bool = False) -> AsyncIterator[Node]:
        """A new Node process for a test's clients. `plugin`: their pusher-js has Fanfare's plugin."""
        process = await asyncio.create_subprocess_exec(
            self.executable,
            str(CLIENTS / "driver.mjs"),
            cwd=CLIENTS,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            limit=LINE_BYTES,
            env={**os.environ, "PLUGIN": "1" if plugin else ""},
        )
        node = Node(process)
        try:
            yield node
        finally:
            await node.close()


class Node:
    """One Node process with any number of SDK clients."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._clients: dict[str, Client] = {}
        self._reader = asyncio.create_task(self._read())

    async def client(self, server: servers.Server, **options: Any) -> Client:
        """A new pusher-js client, which may not be connected yet. Options: see `_make`."""
        return await self._make("connect", server, **options)

    async def connected(self, server: servers.Server, **options: Any) -> Client:
        """A new pusher-js client that is connected."""
        return await self._with_socket_id(await self.client(server, **options))

    async def echo(self, server: servers.Server, **options: Any) -> Client:
        """A new Laravel Echo client that is connected."""
        return await self._with_socket_id(await self._make("echo", server, **options))

    async def backend(self, server: servers.Server, **options: Any) -> Client:
        """A new client of the backend SDK."""
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
        token: str = "",
        application: Application | None = None,
        broadcaster: str | None = None,
    ) -> Client:
        """`member`: the channel_data for presence channels. `user`: the user data for sign-in. `master_key`: base64,
        for encrypted channels. `key`: replaces the application's key. `token`: a capability token, sent in place of
        signatures. `application`: another one than the server's. `broadcaster`: Echo's, by default "pusher".
        """
        identifier = str(len(self._clients) + 1)
        client = self._clients[identifier] = Client(self, identifier)
        application = application or server.application
        await client.do(
            kind,
            host=servers.HOST,
            port=server.port,
            application=application.id,
            key=key or application.key,
            secret=application.secret,
            member=member,
            user=user,
            master_key=master_key,
            token=token,
            broadcaster=broadcaster,
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
            report = json.loads(line)
            self._clients[report["id"]].reports.put_nowait(report)

    async def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()  # the driver ends with its input
        try:
            async with asyncio.timeout(20):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        await self._reader


class Client:
    """One SDK client. A test reads its reports in order and skips those it does not ask for."""

    def __init__(self, node: Node, identifier: str) -> None:
        self._node = node
        self._identifier = identifier
        self.socket_id = ""
        self.reports: asyncio.Queue[Report] = asyncio.Queue()

    async def do(self, action: str, **arguments: Any) -> None:
        await self._node.write({"do": action, "id": self._identifier, **arguments})

    async def next(self, within: float = sockets.PATIENCE, **wanted: Any) -> Report:
        """The next report that has all these fields."""
        async with asyncio.timeout(within):
            while True:
                report = await self.reports.get()
                if all(report.get(field) == value for field, value in wanted.items()):
                    return report

    async def state(self, state: str, within: float = sockets.PATIENCE) -> Report:
        return await self.next(within, what="state", state=state)

    async def event(self, channel: str, event: str) -> Report:
        return await self.next(what="event", channel=channel, event=event)

    async def subscribe(self, channel: str) -> Report:
        """Subscribe and wait for `pusher:subscription_succeeded`."""
        await self.do("subscribe", channel=channel)
        return await self.event(channel, "pusher:subscription_succeeded")

    async def members(self, channel: str) -> Report:
        """The members of a presence channel as pusher-js holds them."""
        await self.do("members", channel=channel)
        return await self.next(what="members", channel=channel)

    async def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the backend SDK; a request returns {"status", "body"}. Raises Refused."""
        await self.do("call", call=method, **{"with": arguments})
        async with asyncio.timeout(sockets.PATIENCE):
            report = await self.reports.get()
        if report["what"] == "refused":
            raise Refused(report)
        return report["answer"]


class Refused(Exception):
    """The SDK raised. `status` and `body` of the response, None if there was none."""

    def __init__(self, report: Report) -> None:
        super().__init__(report["message"])
        self.status: int | None = report["status"]
        self.body: str | None = report["body"]
