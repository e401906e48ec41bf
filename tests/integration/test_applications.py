"""Changes of applications, made in another process, reach every worker at once."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Callable

import pytest

from tests.harness import calls, deployments, sdk, servers, sockets, waiting

Name = Callable[[str], str]

AT_ONCE = 3.0  # seconds: by notification, not by the reload every ten seconds


@pytest.fixture(params=["uvicorn", "four_workers"])
def server(request: pytest.FixtureRequest) -> servers.Server:
    chosen: servers.Server = request.getfixturevalue(request.param)
    return chosen


async def _known_to_all(server: servers.Server, application: deployments.Application) -> None:
    """Wait until every worker accepts the application; each is asked over its own connection."""
    with calls.to_each_worker(server) as callers:
        for caller in callers.values():
            caller.application = application

            async def knows(caller: calls.Caller = caller) -> bool:
                return (await asyncio.to_thread(caller.signed, "GET", "channels")).status == 200

            await waiting.until_async(knows, AT_ONCE, "the worker knows the new application")


async def _on_every_worker(
    server: servers.Server, application: deployments.Application, stack: contextlib.AsyncExitStack
) -> list[sockets.Socket]:
    spread = await sockets.spread(server, stack, application=application)
    return [socket for found in spread.values() for socket in found]


async def test_created_application_is_served_at_once(server: servers.Server, name: Name) -> None:
    application = await asyncio.to_thread(server.deployment.create_application, name("created"))
    await _known_to_all(server, application)
    async with contextlib.AsyncExitStack() as stack:
        for socket in await _on_every_worker(server, application, stack):
            await socket.subscribe("news")
        await asyncio.to_thread(sdk.client(server, application).trigger, "news", "created", {})


async def test_sockets_of_a_disabled_application_are_closed_in_all_workers(server: servers.Server, name: Name) -> None:
    application = await asyncio.to_thread(server.deployment.create_application, name("disabled"))
    await _known_to_all(server, application)
    async with contextlib.AsyncExitStack() as stack:
        opened = await _on_every_worker(server, application, stack)
        neighbour = await stack.enter_async_context(sockets.connect(server))
        await asyncio.to_thread(_change, server, application, "enabled = False")
        codes = await asyncio.gather(*(socket.closed(within=AT_ONCE) for socket in opened))
        assert set(codes) == {4100}  # clients come back, and wait for the application to be enabled again
        await neighbour.expect_silence()
    with calls.Caller(server, application) as caller:
        assert caller.signed("POST", "events", {"name": "x", "channels": ["news"], "data": "{}"}).status == 403


async def test_sockets_of_a_deleted_application_are_closed_in_all_workers(server: servers.Server, name: Name) -> None:
    application = await asyncio.to_thread(server.deployment.create_application, name("deleted"))
    await _known_to_all(server, application)
    async with contextlib.AsyncExitStack() as stack:
        opened = await _on_every_worker(server, application, stack)
        await asyncio.to_thread(server.deployment.shell, f"Application.objects.get(app_id={application.id!r}).delete()")
        codes = await asyncio.gather(*(socket.closed(within=AT_ONCE) for socket in opened))
    assert set(codes) == {4001}


async def test_rotated_secret_applies_at_once_and_closes_no_socket(server: servers.Server, name: Name) -> None:
    application = await asyncio.to_thread(server.deployment.create_application, name("rotated"))
    await _known_to_all(server, application)
    async with contextlib.AsyncExitStack() as stack:
        opened = await _on_every_worker(server, application, stack)
        rotated = dataclasses.replace(application, secret="a" * 40)
        await asyncio.to_thread(_change, server, application, f"secret = {rotated.secret!r}")
        await _known_to_all(server, rotated)
        for socket in opened:
            await socket.expect_silence()
    with calls.Caller(server, application) as caller:
        assert caller.signed("GET", "channels").status == 401


async def test_connection_limit_holds_over_all_workers(server: servers.Server, name: Name) -> None:
    flags = ("--max-connections", "5")
    application = await asyncio.to_thread(server.deployment.create_application, name("limited"), *flags)
    await _known_to_all(server, application)
    async with contextlib.AsyncExitStack() as stack:
        admitted = [await stack.enter_async_context(sockets.connect(server, application)) for _ in range(5)]
        url = server.socket_url(application.key)
        async with sockets.open_raw(server, url, application) as refused:
            frame = await refused.expect("pusher:error")
            assert frame.data["code"] == 4100
            assert "5" in frame.data["message"]
            assert await refused.closed() == 4100, "clients reconnect after this code"
        for socket in admitted:
            await socket.expect_silence()
        await admitted[0].websocket.close()

        async def admits() -> bool:
            async with sockets.open_raw(server, url, application) as socket:
                return (await socket.receive()).event == "pusher:connection_established"

        await waiting.until_async(admits, AT_ONCE, "a connection is accepted after another has closed")


def test_duplicate_id_is_refused_in_one_line(uvicorn: servers.Server) -> None:
    with pytest.raises(deployments.CommandFailed) as refused:
        uvicorn.deployment.create_application("Another", "--id", uvicorn.application.id)
    assert refused.value.stdout == ""
    assert "Traceback" not in refused.value.stderr
    assert len(refused.value.stderr.strip().splitlines()) == 1


def _change(server: servers.Server, application: deployments.Application, assignment: str) -> None:
    """Change an application in another process, as the admin does."""
    found = f"application = Application.objects.get(app_id={application.id!r})"
    server.deployment.shell(f"{found}\napplication.{assignment}\napplication.save()")
