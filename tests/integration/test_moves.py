"""The log moves to another store while clients are connected and a backend publishes."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import Iterator

import pytest

from tests.harness import calls, deployments, event_streams, postgresql, servers, sockets, waiting

WITHIN = 60


@pytest.fixture(scope="module")
def cluster() -> Iterator[postgresql.Cluster]:
    with postgresql.running() as cluster:
        cluster.create("realtime")
        yield cluster


@pytest.fixture(scope="module")
def environment(cluster: postgresql.Cluster) -> dict[str, str]:
    return {"DATABASE_URL": cluster.url("realtime"), "FANFARE_SECRET_KEY": "the same before and after " * 2}


@pytest.fixture(scope="module")
def application(fleet: servers.Fleet, environment: dict[str, str]) -> deployments.Application:
    found = fleet.deployment(**environment)
    found.manage("migrate", "--verbosity", "0")
    return found.create_application("Moves", "--history", "news=1000,600")


@pytest.fixture
def deployment(
    fleet: servers.Fleet, environment: dict[str, str], application: deployments.Application
) -> deployments.Deployment:
    found = fleet.deployment(**environment)
    found.application = application
    return found


async def publish(server: servers.Server, data: str) -> None:
    """Until it is acknowledged, as a backend does that repeats what is answered with 503."""

    def attempt() -> bool:
        with calls.Caller(server) as caller:
            body = {"name": "created", "channels": ["news"], "data": data, "idempotency_key": data}
            answer = caller.signed("POST", "events", body)
        assert answer.status in (200, 503), answer
        assert answer.status == 200 or "retry-after" in answer.headers
        return answer.status == 200

    await waiting.until_async(lambda: asyncio.to_thread(attempt), WITHIN, "the event is acknowledged")


async def test_client_resumes_on_the_same_worker_after_a_move(
    fleet: servers.Fleet, deployment: deployments.Deployment, cluster: postgresql.Cluster
) -> None:
    url = cluster.url("realtime", schema="followed")
    deployment.use(FANFARE_ENGINE_NEXT=url)
    server = await asyncio.to_thread(fleet.start, "uvicorn", deployment)
    application = deployment.application
    async with (
        sockets.connect(server) as socket,
        event_streams.listen(server, application, "news") as stream,
    ):
        await socket.subscribe("news")
        await stream.statement()
        await publish(server, "1")
        assert (await socket.expect("created", "news")).data == "1"
        assert (await stream.next()).data["data"] == "1"
        moved = await asyncio.to_thread(deployment.manage, "fanfare", "--json", "engine", "move")
        assert json.loads(moved)["entries"] == 1
        assert await socket.closed(WITHIN) == 4200
        assert await stream.ended(WITHIN)
    await publish(server, "2")
    async with (
        event_streams.listen(server, application, "news", last_event_id=stream.last_event_id) as resumed,
        sockets.connect(server) as back,
    ):
        assert (await resumed.statement())["news"]["recovered"]
        assert (await resumed.next()).data["data"] == "2"
        await back.subscribe("news")
        await publish(server, "3")
        assert (await resumed.next()).data["data"] == "3"
        assert (await back.expect("created", "news")).data == "3"
    log = server.log_text()
    assert re.findall(r"engine (local|postgres)", log) == ["local", "postgres"]
    assert "may have been missed" not in log  # an operator has planned it
    status = json.loads(await asyncio.to_thread(deployment.manage, "fanfare", "--json", "engine", "status"))
    assert status["mark"]["what"] == "moved"
    now = await asyncio.to_thread(deployment.manage, "fanfare", "engine", "status", FANFARE_ENGINE=url)
    assert "workers: 1" in now
    assert "moved here from local" in now


async def test_worker_goes_over_to_the_local_engine(
    fleet: servers.Fleet, deployment: deployments.Deployment, cluster: postgresql.Cluster
) -> None:
    deployment.use(FANFARE_ENGINE=cluster.url("realtime", schema="shared"), FANFARE_ENGINE_NEXT="local")
    shutil.rmtree(deployment.folder / "engine")  # of the template
    server = await asyncio.to_thread(fleet.start, "uvicorn", deployment)
    async with sockets.connect(server) as socket:
        await socket.subscribe("news")
        await publish(server, "1")
        await asyncio.to_thread(deployment.manage, "fanfare", "engine", "move")
        assert await socket.closed(WITHIN) == 4200
    await publish(server, "2")
    with calls.Caller(server) as caller:
        answer = await asyncio.to_thread(caller.signed, "GET", "channels/news/history")
    assert answer.body["position"].endswith(":2"), answer
    now = await asyncio.to_thread(deployment.manage, "fanfare", "engine", "status", FANFARE_ENGINE="local")
    assert "workers: 1" in now
    assert "moved here from postgres" in now


async def test_old_store_refuses_workers_without_the_new_setting(
    fleet: servers.Fleet, deployment: deployments.Deployment, cluster: postgresql.Cluster
) -> None:
    server = await asyncio.to_thread(fleet.start, "uvicorn", deployment)
    await publish(server, "1")
    await asyncio.to_thread(
        deployment.manage, "fanfare", "engine", "move", "--to", cluster.url("realtime", schema="named")
    )
    with calls.Caller(server) as caller:
        answer = await asyncio.to_thread(
            caller.signed, "POST", "events", {"name": "created", "channels": ["news"], "data": "late"}
        )
    assert answer.status == 503
    assert "was moved to postgres" in json.dumps(answer.body)
    server.stop()
    with pytest.raises(AssertionError, match="set FANFARE_ENGINE to that and restart"):
        await asyncio.to_thread(fleet.start, "uvicorn", deployment)
