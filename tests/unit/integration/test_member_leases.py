"""presence.member: members without a connection, on a local engine with a worker."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import sync_to_async

import fanfare
from fanfare import presence
from fanfare.engine import errors, interface
from fanfare.engine.local import engine as local_engine
from fanfare.integration import member_leases
from tests.harness import waiting
from tests.unit.engine import workers

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("application")]

CHANNEL = "presence-room-7"
PATIENCE_S = 60.0


@pytest.fixture
async def worker(here: Any, tmp_path: Path, application: Any) -> AsyncIterator[workers.Worker]:
    """Beside the process of the member."""
    worker = await workers.Worker(local_engine.LocalEngine(tmp_path / "engine")).open(listening=False)
    worker.engine.listen(application.app_id, CHANNEL, True)
    yield worker
    await worker.engine.close()


def changes(worker: workers.Worker) -> list[tuple[interface.Kind, bytes]]:
    return [(entry.kind, entry.body) for entry in worker.entries]


async def test_member_joins_is_updated_and_leaves_with_its_block(worker: workers.Worker) -> None:
    async with presence.member(CHANNEL, fanfare.UserData("bot"), {"name": "Bot"}) as bot:
        assert await presence.amembers(CHANNEL) == [fanfare.Member("bot", {"name": "Bot"})]
        await bot.aupdate({"name": "Bot", "status": "away"})
    await worker.until(lambda: len(worker.entries) == 3, "the member has left", PATIENCE_S)
    assert changes(worker) == [
        (interface.Kind.MEMBER_ADDED, b'{"name":"Bot"}'),
        (interface.Kind.MEMBER_UPDATED, b'{"name":"Bot","status":"away"}'),
        (interface.Kind.MEMBER_REMOVED, b""),
    ]


async def test_blocking_form_in_a_thread(worker: workers.Worker) -> None:
    def run() -> list[str]:
        with presence.member(CHANNEL, fanfare.UserData("bot")) as bot:
            bot.update([1])
            return [one.id for one in presence.members(CHANNEL)]

    assert await sync_to_async(run)() == ["bot"]
    assert await presence.amembers(CHANNEL) == []


async def test_member_is_renewed_and_a_failed_renewal_is_repeated(
    here: Any, worker: workers.Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(member_leases, "RENEWALS", 300)
    lease, calls, failed = here.lease_member, [], threading.Event()

    def flaky(*arguments: Any, **more: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            failed.set()
            raise errors.EngineUnavailable("away")
        return lease(*arguments, **more)

    monkeypatch.setattr(here, "lease_member", flaky)
    async with presence.member(CHANNEL, fanfare.UserData("bot"), ttl=300):
        await waiting.until_async(lambda: asyncio.sleep(0, len(calls) > 4), PATIENCE_S, "renewals")
        assert failed.is_set()
    assert [kind for kind, _ in changes(worker)][:1] == [interface.Kind.MEMBER_ADDED]
    await worker.until(lambda: len(worker.entries) == 2, "it joined once and left once", PATIENCE_S)


async def test_member_whose_process_stands_still_leaves_and_comes_back(
    worker: workers.Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(member_leases, "RENEWALS", 0.001)  # the thread renews after 1000 times the time to live
    async with presence.member(CHANNEL, fanfare.UserData("bot"), {"a": 1}, ttl=1) as bot:
        await worker.until(lambda: len(worker.entries) == 2, "the member has left", PATIENCE_S)
        await bot.aupdate({"a": 2})
        await worker.until(lambda: len(worker.entries) == 3, "the member is back", PATIENCE_S)
    assert changes(worker)[:3] == [
        (interface.Kind.MEMBER_ADDED, b'{"a":1}'),
        (interface.Kind.MEMBER_REMOVED, b""),
        (interface.Kind.MEMBER_ADDED, b'{"a":2}'),
    ]


async def test_block_ends_while_the_log_is_away(
    here: Any, worker: workers.Worker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(*_: Any, **__: Any) -> bool:
        raise errors.EngineUnavailable("away")

    async with presence.member(CHANNEL, fanfare.UserData("bot")):
        monkeypatch.setattr(here, "release_member", away)
    assert "its lease expires in 30 s: away" in caplog.text


async def test_task_that_is_cancelled_while_it_joins_leaves_no_member(
    here: Any, worker: workers.Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that joins cannot be cancelled, and its renewals would keep the member for the process's life."""
    lease, joining, go_on = here.lease_member, threading.Event(), threading.Event()

    def slow(*arguments: Any, **more: Any) -> Any:
        joining.set()
        go_on.wait()
        return lease(*arguments, **more)

    async def join() -> None:
        async with presence.member(CHANNEL, fanfare.UserData("bot")):
            pytest.fail("the block is not entered")

    monkeypatch.setattr(here, "lease_member", slow)
    task = asyncio.ensure_future(join())
    await asyncio.to_thread(joining.wait)
    task.cancel()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    await worker.until(lambda: len(worker.entries) == 2, "the member has left", PATIENCE_S)
    assert [kind for kind, _ in changes(worker)] == [interface.Kind.MEMBER_ADDED, interface.Kind.MEMBER_REMOVED]


async def test_full_channel_is_refused_with_both_numbers(worker: workers.Worker, application: Any) -> None:
    application.max_presence_members = 1
    await application.asave()
    async with presence.member(CHANNEL, fanfare.UserData("a"), app=application):
        with pytest.raises(fanfare.TooManyMembers) as caught:
            async with presence.member(CHANNEL, fanfare.UserData("b"), app=application):
                pass
    assert (caught.value.actual, caught.value.limit) == (1, 1)


@pytest.mark.parametrize(
    ("channel", "info", "error"),
    [
        ("room", None, fanfare.InvalidName),
        (CHANNEL, object(), fanfare.UnencodableData),
        (CHANNEL, "x" * 2_047, fanfare.DataTooLarge),
    ],
)
async def test_wrong_arguments(here: Any, channel: str, info: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        async with presence.member(channel, fanfare.UserData("bot"), info):
            pass


async def test_blocking_form_is_refused_in_a_coroutine(here: Any) -> None:
    with pytest.raises(fanfare.CalledOnEventLoop, match="async with presence"), presence.member(CHANNEL, "7"):
        pass
    with pytest.raises(ValueError, match="at least 3 seconds"):
        presence.member(CHANNEL, "7", ttl=1)
