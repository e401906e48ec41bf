"""Clients that resume: over breaking connections, killed servers and a deleted log."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

import pytest

from tests.harness import deployments, pusherjs, servers
from tests.kills import chaos, followers, publisher, rounds

RESUMING = (followers.SESSION, followers.PLUGIN, followers.SSE)


@pytest.mark.parametrize(
    ("this", "seconds"),
    [
        pytest.param(rounds.WHOLE, 14.0, id="large limits: no event is lost"),
        pytest.param(rounds.BOUNDED, 7.0, id="small limits: no loss is unreported"),
    ],
)
async def test_clients_resume_through_failures(
    fleet: servers.Fleet, pusher_js: pusherjs.Runtime, this: rounds.Round, seconds: float
) -> None:
    """The short form of `python -m tests.kills`."""
    result = await rounds.play(this, fleet, pusher_js, seconds=seconds, per_second=1_000, every_s=1.5)
    assert result.published >= seconds * 1_000
    assert result.done
    assert result.faults == []


@contextlib.asynccontextmanager
async def following(
    kinds: Sequence[str],
    application: deployments.Application,
    restartable: chaos.RestartableServer,
    runtime: pusherjs.Runtime,
    life_s: tuple[float, float] | None = None,
) -> AsyncIterator[list[followers.Follower]]:
    async with contextlib.AsyncExitStack() as stack:
        clients = []
        for kind in kinds:
            to = await stack.enter_async_context(restartable.proxy(life_s).running())
            one = followers.Follower(kind, "counts", to, application)
            clients.append(await stack.enter_async_context(one.following(runtime)))
        yield clients


@contextlib.asynccontextmanager
async def publishing(
    application: deployments.Application, restartable: chaos.RestartableServer, per_second: int
) -> AsyncIterator[publisher.Publisher]:
    async with restartable.proxy().running() as to:
        yield publisher.Publisher(to, application, ["counts"], per_second)


async def test_client_with_short_connections_makes_progress(
    fleet: servers.Fleet, four_workers: servers.Server, pusher_js: pusherjs.Runtime
) -> None:
    """The server requests acknowledgements soon after a delivery. Otherwise each connection would repeat the same
    events, and finally exceed the replay limit.
    """
    application = await asyncio.to_thread(
        four_workers.deployment.create_application,
        "Tunnels",
        "--history",
        "c*=100000,600",
        "--replay",
        "c*=2500,33554432",
    )
    restartable = chaos.RestartableServer(fleet, four_workers)
    async with (
        following([followers.SESSION], application, restartable, pusher_js, (0.4, 0.8)) as (page,),
        publishing(application, restartable, 500) as backend,
    ):
        await backend.run(10)
        page.proxy.life_s = None
        await rounds.arrival([page], backend)
        assert page.transcript.connections > 5
        assert rounds.faults_of(page.kind, page.transcript.examine(backend.acknowledged), ()) == []


async def test_deleted_log_is_reported_to_all_clients_as_epoch_changed(
    fleet: servers.Fleet, pusher_js: pusherjs.Runtime
) -> None:
    deployment = fleet.deployment()
    application = await asyncio.to_thread(deployment.create_application, "Deleted", "--history", "c*=100000,600")
    restartable = chaos.RestartableServer(fleet, await asyncio.to_thread(fleet.start, "gunicorn", deployment))
    try:
        async with (
            following(RESUMING * 2, application, restartable, pusher_js) as clients,
            publishing(application, restartable, 100) as backend,
        ):
            await backend.run(0.5)
            await rounds.arrival(clients, backend)
            for path in deployment.log_files():
                path.unlink()
            await backend.run(1.5)
            await rounds.arrival(clients, backend)
            for client in clients:
                assert client.transcript.reasons == ["epoch_changed"], client.kind
                assert client.transcript.recoveries == 0, client.kind
                assert client.transcript.examine(backend.acknowledged).unreported == 0, client.kind
    finally:
        await asyncio.to_thread(restartable.server.stop)
