"""Revocations in two workers of one deployment: real engines, real hubs, WebSockets."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from fanfare.applications import registry
from fanfare.engine import errors, interface
from fanfare.engine.local import engine
from fanfare.hub import event_frames
from fanfare.hub import hub as hubs
from fanfare.protocol import capabilities, consumers, refusals, revocations, sessions, termination
from tests.harness import waiting
from tests.unit.protocol import fakes

APP = fakes.APPLICATION


class Worker:
    def __init__(self, folder: Path) -> None:
        self.hub = hubs.Hub(engine.LocalEngine(folder))
        termination.register(self.hub)
        self.revocations = revocations.of(self.hub)
        applications = registry.Registry()
        applications.put(APP)
        self.application = consumers.PusherConsumer.as_asgi(
            hub=self.hub, registry=applications, options=sessions.Options(), max_frame_bytes=10_000
        )

    async def subscribed(self, channel: str, auth: str) -> fakes.Browser:
        browser = await fakes.Browser(self.application).connected()
        browser.send(fakes.subscribe(channel, auth=auth))
        await browser.frame("pusher_internal:subscription_succeeded")
        return browser

    async def knows(self, capability: capabilities.Capability) -> str:
        """The reason why a capability is refused; "" for a valid one."""
        try:
            await self.revocations.read_and_check(APP.id, capability)
        except refusals.InvalidToken as error:
            return error.reason
        return ""

    async def revoke(self, token_id: str, **more: Any) -> None:
        commands = revocations.publications(APP.id, token_id, now=time.time(), **{"expires": None, **more})
        await self.hub.publish(commands)


@pytest.fixture
async def workers(tmp_path: Path) -> AsyncIterator[list[Worker]]:
    found = [Worker(tmp_path), Worker(tmp_path)]
    for worker in found:
        await worker.hub.start()
    yield found
    for worker in found:
        await worker.hub.stop()


def token(token_id: str | None = "one", *, seconds: float = 600, **more: Any) -> str:
    contents = capabilities.Capability(("private-*",), time.time() + seconds, token_id=token_id, **more)
    return capabilities.sign(APP.secret, contents)


async def refused(worker: Worker, auth: str) -> str:
    browser = await fakes.Browser(worker.application).connected()
    browser.send(fakes.subscribe("private-a", auth=auth))
    error = await browser.frame("pusher:subscription_error")
    return str(error["data"]["error"])


def capability(token_id: str | None = None, **more: Any) -> capabilities.Capability:
    return capabilities.Capability(("private-*",), time.time() + 600, token_id=token_id, **more)


def revocation(token_id: str) -> bytes:
    """The argument of the command."""
    return orjson.dumps({"jti": token_id, "exp": None})


@pytest.mark.parametrize(
    ("expires", "seconds"),
    [
        (None, revocations.RECORD_S),
        (1_060.5, 61),
        (900.0, 1),
        (1_000.0 + 2 * capabilities.MAX_LIFE_S, revocations.RECORD_S),
    ],
)
def test_record_is_kept_until_the_token_expires(expires: float | None, seconds: int) -> None:
    record, command = revocations.publications("3", "one", expires=expires, now=1_000.0)
    assert (record.channel, record.kind) == ("#revoked-one", interface.Kind.MESSAGE)
    assert record.retention == interface.Retention(size=1, seconds=seconds)
    assert (command.channel, command.kind) == (revocations.COMMAND, interface.Kind.CONTROL)


async def test_revocation_ends_subscriptions_of_that_token_in_every_worker(workers: list[Worker]) -> None:
    first, second = workers
    open_ = [await worker.subscribed("private-a", token()) for worker in workers]
    other = await second.subscribed("private-a", token("two"))
    await first.revoke("one")
    for browser in open_:
        error = await browser.frame("pusher:subscription_error")
        assert (error["channel"], error["data"]["type"]) == ("private-a", "TokenRevoked")
        assert browser.closed is None
    await other.drained()
    assert "pusher:subscription_error" not in other.events()
    for worker in workers:
        assert await refused(worker, token()) == revocations.MESSAGE
        assert worker.hub.counters["capabilities.revoked"] == 1


async def test_event_before_a_revocation_is_delivered(workers: list[Worker]) -> None:
    browser = await workers[0].subscribed("private-a", token())
    event = interface.Publication(APP.id, "private-a", event_frames.event("last", "private-a", "1"))
    revoked = revocations.publications(APP.id, "one", expires=None, now=time.time())
    await workers[0].hub.publish([event, *revoked])
    await browser.frame("pusher:subscription_error")
    assert browser.events().index("last") < browser.events().index("pusher:subscription_error")


async def test_connections_with_one_token_are_ended_without_those_that_have_left(workers: list[Worker]) -> None:
    leaving, staying = [await workers[0].subscribed("private-a", token()) for _ in range(2)]
    await leaving.leave()
    await workers[0].revoke("one")
    await staying.frame("pusher:subscription_error")


async def test_worker_that_starts_later_knows_a_revocation(workers: list[Worker], tmp_path: Path) -> None:
    await workers[0].revoke("one")
    later = Worker(tmp_path)
    await later.hub.start()
    try:
        assert await refused(later, token()) == revocations.MESSAGE
        await later.subscribed("private-a", token("two"))
    finally:
        await later.hub.stop()


async def test_subscription_ends_when_its_token_expires(workers: list[Worker]) -> None:
    browser = await workers[0].subscribed("private-a", token("one", seconds=1.5))
    browser.send(fakes.subscribe("private-b", auth=token("two", seconds=2.5)))
    await until(lambda: browser.events().count("pusher:subscription_error") == 2)
    found = [frame for frame in browser.frames if frame["event"] == "pusher:subscription_error"]
    assert [(frame["channel"], frame["data"]["type"]) for frame in found] == [
        ("private-a", "TokenExpired"),
        ("private-b", "TokenExpired"),
    ]
    [connection] = workers[0].hub.connections_of(APP.id)
    assert isinstance(connection.owner, sessions.Session)
    assert connection.owner._capability_timer is None
    assert not workers[0].revocations._holders


async def test_termination_of_the_user_ends_subscriptions_and_refuses_older_tokens(workers: list[Worker]) -> None:
    browser = await workers[1].subscribed("private-a", token(None, user_id="42"))
    now = time.time()
    await workers[0].hub.publish(termination.publications(APP.id, "42", reconnect=False, now=now))
    await browser.frame("pusher:subscription_error")
    assert "ended this user's connections" in await refused(workers[0], token(None, user_id="42", issued=now - 1))
    await workers[0].subscribed("private-a", token(None, user_id="42", issued=now + 1))


async def test_termination_refuses_tokens_that_are_not_newer(workers: list[Worker]) -> None:
    now = time.time()
    for worker in workers:
        assert await worker.knows(capability(user_id="42", issued=now)) == ""
    for at in (now - 5, now):
        await workers[0].hub.publish(termination.publications(APP.id, "42", reconnect=False, now=at))
    for worker in workers:
        await waiting.until_async(
            lambda worker=worker: worker.knows(capability(user_id="42", issued=now)), 30, "a command"
        )
        assert await worker.knows(capability(user_id="42", issued=now)) == "terminated"
        assert await worker.knows(capability(user_id="42")) == "terminated"
        assert await worker.knows(capability(user_id="42", issued=now + 0.001)) == ""
        assert await worker.knows(capability(user_id="43", issued=now)) == ""
        assert await worker.knows(capability("one", user_id="42", issued=now)) == "terminated"


async def test_worker_that_starts_later_knows_the_last_termination(workers: list[Worker], tmp_path: Path) -> None:
    now = time.time()
    for at in (now - 5, now):
        await workers[0].hub.publish(termination.publications(APP.id, "42", reconnect=False, now=at))
    later = Worker(tmp_path)
    await later.hub.start()
    try:
        assert await later.knows(capability(user_id="42", issued=now - 1)) == "terminated"
        assert await later.knows(capability(user_id="42", issued=now + 1)) == ""
    finally:
        await later.hub.stop()


async def test_termination_with_reconnect_ends_subscriptions_and_leaves_tokens_valid(workers: list[Worker]) -> None:
    browser = await workers[1].subscribed("private-a", token(None, user_id="42"))
    await workers[0].hub.publish(termination.publications(APP.id, "42", reconnect=True, now=time.time()))
    await browser.frame("pusher:subscription_error")
    await workers[1].subscribed("private-a", token(None, user_id="42"))


async def test_revocation_during_the_read_of_its_record_is_not_overwritten(
    workers: list[Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = workers[0]
    ask = worker.hub.engine.ask

    async def overtaken(query: Any) -> Any:
        found = await ask(query)
        worker.revocations._revoke(APP.id, revocation("one"))
        return found

    monkeypatch.setattr(worker.hub.engine, "ask", overtaken)
    assert await worker.knows(capability("one")) == "revoked_token"


async def test_record_is_read_again_after_a_gap_meanwhile(
    workers: list[Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = workers[0]
    ask, reads = worker.hub.engine.ask, 0
    monkeypatch.setitem(worker.hub._controls, revocations.COMMAND, lambda *_: None)

    async def read_before_a_gap(query: Any) -> Any:
        nonlocal reads
        reads += 1
        found = await ask(query)
        if reads == 1:
            await workers[1].revoke("one")
            worker.hub._on_gap("trimmed", None)
        return found

    monkeypatch.setattr(worker.hub.engine, "ask", read_before_a_gap)
    assert await worker.knows(capability("one")) == "revoked_token"
    assert reads == 2


async def test_connections_with_one_token_share_the_read_of_its_record(
    workers: list[Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = workers[0]
    ask, reads = worker.hub.engine.ask, 0

    async def counted(query: Any) -> Any:
        nonlocal reads
        reads += 1
        return await ask(query)

    monkeypatch.setattr(worker.hub.engine, "ask", counted)
    assert await asyncio.gather(*(worker.knows(capability("one")) for _ in range(3))) == ["", "", ""]
    assert await worker.knows(capability("one")) == ""
    assert reads == 1


@pytest.mark.parametrize("is_revoked", [True, False])
async def test_subscription_ends_if_its_later_token_is_revoked_before_the_answer(
    workers: list[Worker], monkeypatch: pytest.MonkeyPatch, is_revoked: bool
) -> None:
    worker = workers[0]
    browser = await worker.subscribed("private-cache-a", token("one"))
    attach, held = worker.hub.engine.attach, list[Any]()
    monkeypatch.setattr(worker.hub.engine, "attach", lambda *arguments: held.append(arguments))
    browser.send(fakes.subscribe("private-cache-a", auth=token("two")))
    await until(lambda: held)
    await worker.revoke("two" if is_revoked else "three")
    await until(lambda: worker.hub.counters["capabilities.revoked"])
    assert "pusher:subscription_error" not in browser.events()
    [arguments] = held
    attach(*arguments)
    await browser.until(lambda: browser.events().count("pusher_internal:subscription_succeeded") == 2)
    await browser.drained()
    assert ("pusher:subscription_error" in browser.events()) is is_revoked
    assert bool(worker.hub.connections_of(APP.id)[0].subscriptions) is not is_revoked


async def until(condition: Callable[[], object]) -> None:
    async def look() -> object:
        return condition()

    await waiting.until_async(look, 30, "the condition")


async def test_tokens_in_use_are_checked_again_after_a_gap(
    workers: list[Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command that a gap of the log swallowed."""
    worker = workers[0]
    browser = await worker.subscribed("private-a", token())
    monkeypatch.setitem(worker.hub._controls, revocations.COMMAND, lambda *_: None)
    await workers[1].revoke("one")
    worker.revocations._on_gap()
    await browser.frame("pusher:subscription_error")


async def test_check_after_a_gap_is_repeated_until_the_records_can_be_read(
    workers: list[Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = workers[0]
    browser = await worker.subscribed("private-a", token())
    monkeypatch.setitem(worker.hub._controls, revocations.COMMAND, lambda *_: None)
    await workers[1].revoke("one")
    ask, failed = worker.hub.engine.ask, asyncio.Event()

    async def away_once(query: Any) -> Any:
        if failed.is_set():
            return await ask(query)
        failed.set()
        raise errors.EngineUnavailable("The log is away")

    monkeypatch.setattr(worker.hub.engine, "ask", away_once)
    worker.revocations._on_gap()
    await browser.frame("pusher:subscription_error")
    assert failed.is_set()


async def test_gaps_share_one_check_that_begins_again_after_a_gap_meanwhile(
    workers: list[Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = workers[0].revocations
    checks, goes_on = 0, asyncio.Event()

    async def check() -> None:
        nonlocal checks
        checks += 1
        await goes_on.wait()

    async def is_checked(times: int) -> bool:
        return checks == times

    monkeypatch.setattr(found, "_check_each", check)
    for _ in range(16):
        found._on_gap()
    await waiting.until_async(lambda: is_checked(1), 30, "the check has begun")
    found._on_gap()
    goes_on.set()
    assert found._check is not None
    await found._check
    assert checks == 2


async def test_connection_that_cannot_be_ended_does_not_keep_others_with_a_revoked_token(
    workers: list[Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        def revoked(self, *_: object) -> None:
            raise RuntimeError("it cannot be ended")

    worker = workers[0]
    worker.revocations.hold(APP.id, capabilities.verify(token(), [APP.secret], time.time()), Broken())
    browser = await worker.subscribed("private-a", token())
    monkeypatch.setitem(worker.hub._controls, revocations.COMMAND, lambda *_: None)
    await workers[1].revoke("one")
    worker.revocations._on_gap()
    await browser.frame("pusher:subscription_error")


async def test_subscribe_closes_the_connection_while_the_records_cannot_be_read(
    workers: list[Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(_: Any) -> None:
        raise errors.EngineUnavailable("The log is away")

    with monkeypatch.context() as patched:
        patched.setattr(workers[0].hub.engine, "ask", away)
        browser = await fakes.Browser(workers[0].application).connected()
        browser.send(fakes.subscribe("private-a", auth=token()))
        await browser.until(lambda: browser.closed)
        assert browser.closed is not None
        assert browser.closed[0] == 4100
        assert "cannot be checked: The log is away" in browser.closed[1]
    await workers[0].subscribed("private-a", token())


async def test_connection_that_ends_is_forgotten(workers: list[Worker]) -> None:
    browser = await workers[0].subscribed("private-a", token(user_id="42"))
    assert len(workers[0].revocations._holders) == 2
    await browser.leave()
    await waiting.until_async(lambda: forgotten(workers[0]), 30, "the worker forgets the token")


async def forgotten(worker: Worker) -> bool:
    return not worker.revocations._holders


async def test_oldest_answer_is_forgotten_first(workers: list[Worker], monkeypatch: pytest.MonkeyPatch) -> None:
    worker = workers[0]
    one, two, three = capability("one"), capability("two"), capability("three")
    monkeypatch.setattr(revocations, "REMEMBERED", 2)
    assert [await worker.knows(each) for each in (one, two)] == ["", ""]
    assert worker.revocations.is_valid(APP.id, one), "two answers are kept"
    worker.revocations._revoke(APP.id, revocation("one"))
    assert await worker.knows(three) == ""
    assert not worker.revocations.is_valid(APP.id, two), "it must be read again"
    with pytest.raises(refusals.InvalidToken):
        worker.revocations.is_valid(APP.id, one)


async def test_answers_are_bounded(workers: list[Worker], monkeypatch: pytest.MonkeyPatch) -> None:
    known = workers[0].revocations
    monkeypatch.setattr(revocations, "REMEMBERED", 3)
    await workers[0].revoke("one")
    for number in range(5):
        contents = capabilities.Capability(("private-*",), time.time() + 60, token_id=str(number))
        await known.read_and_check(APP.id, contents)
    assert len(known._revoked_at) == 3
    with pytest.raises(refusals.InvalidToken):
        await known.read_and_check(APP.id, capabilities.Capability((), time.time() + 60, token_id="one"))
