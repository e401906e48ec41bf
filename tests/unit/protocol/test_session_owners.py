"""Ownership of resume tokens: the newest socket owns one; a token of several pages is refused."""

from __future__ import annotations

import functools
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import orjson
import pytest

from fanfare.engine import errors, interface
from fanfare.engine.local import engine as local_engine
from fanfare.engine.postgres import engine as postgres_engine
from fanfare.hub import hub as hubs
from fanfare.protocol import session_owners
from tests.harness import postgresql, waiting
from tests.unit.hub import doubles

TOKEN = "token-token-token"
RECORD = b'{"seen":{}}'


class Page:
    """A connected page that records the calls of `SessionOwners`. `is_alive`: its client answers pings."""

    def __init__(self, socket_id: str, *, is_alive: bool = True) -> None:
        self.socket_id = socket_id
        self.is_alive = is_alive
        self.evicted = False
        self.without_token = False
        self.saves = 0
        self.slot: set[session_owners.SessionOwner] | None = None

    def due(self) -> None:
        pass

    def evict(self, answered: Callable[[], None]) -> None:
        if self.is_alive:
            answered()
        self.evicted = True

    def save(self) -> None:
        self.saves += 1

    def lose_token(self) -> None:
        self.without_token = True


class Worker:
    """A hub and its tokens."""

    def __init__(self, engine: interface.Engine) -> None:
        self.hub = hubs.Hub(engine)
        self.now = 1_800_000_000.0
        self.owners = session_owners.SessionOwners(self.hub, lambda: self.now)

    async def take(self, page: Page, token: str = TOKEN, app: str = "1") -> interface.Taken | None:
        return await self.owners.take(app, token, page)

    def save(self, page: Page, *, release: bool = False) -> None:
        self.hub.engine.save_session("1", TOKEN, RECORD, 60, holder=page.socket_id, release=release)

    @property
    def entries(self) -> int:
        """How many entries this worker has read."""
        return int(self.hub.engine.statistics()["entries"])


@pytest.fixture(scope="module")
def cluster() -> Iterator[postgresql.Cluster]:
    with postgresql.running() as cluster:
        cluster.create("realtime")
        yield cluster


@pytest.fixture(params=["local", "postgres"])
async def workers(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[list[Worker]]:
    """Three workers of one deployment."""
    make: Callable[[], interface.Engine] = functools.partial(local_engine.LocalEngine, tmp_path)
    if request.param == "postgres":
        url = request.getfixturevalue("cluster").url("realtime", schema=f"log_{uuid.uuid4().hex[:12]}")
        make = functools.partial(postgres_engine.PostgresEngine, url)
    found = [Worker(make()) for _ in range(3)]
    for worker in found:
        await worker.hub.start()
    yield found
    for worker in found:
        await worker.hub.stop()


async def until(condition: Callable[[], object]) -> None:
    async def look() -> object:
        return condition()

    await waiting.until_async(look, 10, "the condition")


async def test_newest_socket_owns_the_token_on_any_worker(workers: list[Worker]) -> None:
    here, there, _ = workers
    for number, (first, second) in enumerate(((here, here), (here, there))):
        old, new = Page(f"1.{number}"), Page(f"2.{number}")
        token = f"{TOKEN}-{number}"
        assert await first.take(old, token) == interface.Taken(None, None, None)
        assert await second.take(new, token) == interface.Taken(None, old.socket_id, None)
        await until(lambda old=old: old.evicted)
        assert not new.evicted
        assert second.owners.owns(new)
        assert not first.owners.owns(old)


async def test_worker_that_is_not_concerned_reads_nothing_of_a_takeover(workers: list[Worker]) -> None:
    here, there, elsewhere = workers
    for number in range(5):
        old, new = Page(f"1.{number}"), Page(f"2.{number}")
        await here.take(old, f"{TOKEN}-{number}")
        await there.take(new, f"{TOKEN}-{number}")
        await until(lambda old=old: old.evicted)
    end = interface.Publication("1", "end", b"", interface.Kind.CONTROL)  # which every worker reads
    await elsewhere.hub.publish([end])
    await until(lambda: all(worker.hub.counters["controls.unknown"] for worker in workers))
    assert [worker.entries for worker in workers] == [6, 1, 1]


async def test_page_that_was_gone_comes_back_without_an_eviction(workers: list[Worker]) -> None:
    for number in range(5):
        worker, page = workers[number % 2], Page(f"1.{number}")
        taken = await worker.take(page)
        assert taken is not None
        assert (taken.holder, taken.record) == (None, RECORD if number else None)
        worker.save(page, release=True)
        worker.owners.release(page)
        await worker.hub.engine.load_session("1", TOKEN)  # it is written
        assert not page.evicted


async def test_token_that_changes_its_owner_twice_in_a_short_time_is_refused(workers: list[Worker]) -> None:
    here, there, _ = workers
    pages = [Page(f"1.{number}") for number in range(3)]
    await here.take(pages[0])
    await there.take(pages[1])
    await until(lambda: pages[0].evicted)
    assert await here.take(pages[2]) is None
    await until(lambda: pages[1].without_token)
    assert not here.owners.owns(pages[2])
    assert [page.evicted for page in pages] == [True, False, False]
    for worker in (here, there):
        assert worker.owners.is_shared(await worker.hub.engine.load_session("1", TOKEN))
        worker.now += session_owners.REFUSED_S + 1
        assert not worker.owners.is_shared(await worker.hub.engine.load_session("1", TOKEN))
    assert await here.take(Page("1.7"), app="2") is not None, "another application's token is another token"
    assert [worker.hub.counters["resume.token_shared"] for worker in (here, there)] == [1, 1]


async def test_token_of_a_page_whose_connections_break_is_not_refused(workers: list[Worker]) -> None:
    """The ends of its connections are not noticed, so each new one takes the token from an open socket."""
    here, there, _ = workers
    pages = [Page(f"1.{number}", is_alive=False) for number in range(6)]
    for number, page in enumerate(pages):
        worker = (here, there)[number % 2]
        assert await worker.take(page) is not None
        for older in pages[max(0, number - 1) : number]:
            await until(lambda older=older: older.evicted)
    assert not any(page.without_token for page in pages)
    assert here.hub.counters["resume.token_shared"] == there.hub.counters["resume.token_shared"] == 0
    assert not here.owners.is_shared(await here.hub.engine.load_session("1", TOKEN))


async def test_answer_of_an_older_socket_counts_for_one_token_and_is_deleted(workers: list[Worker]) -> None:
    here, there, _ = workers
    await here.take(Page("1.1"))
    await there.take(Page("1.2"))
    key = TOKEN + session_owners.ANSWERED

    async def record() -> bytes | None:
        return await here.hub.engine.load_session("1", key)

    await waiting.until_async(record, 30, "the record of the answer")
    assert await here.hub.engine.load_session("2", key) is None
    here.owners._hub.engine.save_session("1", key, b"1", -interface.LATE_SECONDS)
    assert await record() is None, "it has expired"


async def test_token_that_changes_its_owner_again_later_is_given_away(
    workers: list[Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_owners, "SHARED_S", 0.0)  # the engines count the seconds
    pages = [Page(f"1.{number}") for number in range(3)]
    for worker, page, older in zip(workers, pages, (None, *pages), strict=False):
        assert await worker.take(page) is not None
        if older is not None:
            await until(lambda older=older: older.evicted)
    assert not pages[2].evicted
    assert not any(page.without_token for page in pages)


async def test_takeover_that_comes_before_the_answer_is_obeyed(workers: list[Worker]) -> None:
    """Two sockets of one worker take the token in one turn of the loop."""
    here = workers[0]
    old, new = Page("1.1"), Page("1.2")
    first = here.hub.supervisor.spawn("first", here.take(old))
    second = here.hub.supervisor.spawn("second", here.take(new))
    await first
    await second
    await until(lambda: old.evicted)
    assert here.owners.owns(new)
    assert not here.owners.owns(old)


async def test_failure_to_save_one_page_leaves_the_others(workers: list[Worker]) -> None:
    class Failing(Page):
        def save(self) -> None:
            raise ValueError("no record")

    here, page = workers[0], Page("1.2")
    await here.take(Failing("1.1"), "a" * 20)
    await here.take(page, "b" * 20)
    here.hub._on_gap("trimmed", None)
    assert page.saves == 1


async def test_page_whose_token_cannot_be_taken_does_not_own_it(
    workers: list[Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise errors.EngineUnavailable("away")

    here, page = workers[0], Page("1.1")
    monkeypatch.setattr(here.hub.engine, "take_session", fail)
    with pytest.raises(errors.EngineUnavailable):
        await here.take(page)
    assert not here.owners.owns(page)


@pytest.mark.parametrize("is_repeated", [True, False])
async def test_takeover_whose_answer_is_lost_harms_no_page(
    workers: list[Worker], monkeypatch: pytest.MonkeyPatch, is_repeated: bool
) -> None:
    """The socket takes the token again, or gives up and its page comes back with a new socket."""
    here, there, _ = workers
    older, page = Page("1.1", is_alive=False), Page("1.2")
    await here.take(older)
    here.save(older)
    await here.hub.engine.load_session("1", TOKEN)  # it is written
    take = there.hub.engine.take_session

    async def lose_the_answer(*arguments: str) -> interface.Taken:
        await take(*arguments)
        raise errors.EngineUnavailable("The connection broke")

    monkeypatch.setattr(there.hub.engine, "take_session", lose_the_answer)
    with pytest.raises(errors.EngineUnavailable):
        await there.take(page)
    monkeypatch.undo()
    assert not there.owners.owns(page)
    await until(lambda: older.evicted)
    newest = page if is_repeated else Page("1.3")
    taken = await there.take(newest)
    assert taken is not None
    assert (taken.record, taken.holder) == (RECORD, None if is_repeated else page.socket_id)
    await there.hub.engine.load_session("1", TOKEN)
    assert there.owners.owns(newest)
    assert not newest.evicted
    assert not any(one.without_token for one in (older, page, newest))
    assert not there.owners.is_shared(await there.hub.engine.load_session("1", TOKEN))


@pytest.mark.parametrize(("app", "holder", "token"), [("1", "9.9", TOKEN), ("2", "1.1", TOKEN), ("1", "1.1", "other")])
async def test_takeover_of_a_token_that_the_socket_does_not_own_is_ignored(
    workers: list[Worker], app: str, holder: str, token: str
) -> None:
    here, page = workers[0], Page("1.1")
    await here.take(page)
    here.owners._on_taken(app, holder, orjson.dumps({"token": token, "changed_s": None}))
    assert not page.evicted
    assert here.owners.owns(page)


def taken_from(page: Page, changed_s: float | None) -> tuple[str, str, bytes]:
    return "1", page.socket_id, orjson.dumps({"token": TOKEN, "changed_s": changed_s})


async def test_older_socket_gets_what_was_read_before_it_is_closed(
    workers: list[Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, page, order = workers[0], Page("1.1"), list[str]()
    saved: list[int] = []
    await here.take(page)
    monkeypatch.setattr(here.hub, "flush", lambda: order.append("flush"))
    monkeypatch.setattr(here.hub.engine, "save_session", lambda *arguments: saved.append(arguments[3]))
    evict = page.evict
    monkeypatch.setattr(page, "evict", lambda answered: (order.append("evict"), evict(answered)))
    here.owners._on_taken(*taken_from(page, None))
    assert (order, here.hub.counters["resume.evicted"]) == (["flush", "evict"], 1)
    assert saved == [session_owners.SHARED_S - interface.LATE_SECONDS], "the answer counts for SHARED_S"
    monkeypatch.undo()


async def test_socket_is_closed_for_a_newer_one_where_it_is_unknown_whether_the_token_is_shared(
    workers: list[Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise errors.EngineUnavailable("away")

    here, page = workers[0], Page("1.1")
    await here.take(page)
    monkeypatch.setattr(here.hub.engine, "load_session", fail)
    here.owners._on_taken(*taken_from(page, 1.0))
    await until(lambda: page.evicted)
    assert not page.without_token


@pytest.mark.parametrize(
    ("record", "is_shared"),
    [({"shared_until": 0.5}, False), ({"shared_until": 0.6}, True), ({"seen": {"shared_until": ["epoch", 1]}}, False)],
)
async def test_token_is_refused_until_the_time_in_its_record(record: dict[str, object], is_shared: bool) -> None:
    owners = session_owners.SessionOwners(hubs.Hub(doubles.ScriptedEngine()), lambda: 0.5)
    assert owners.is_shared(orjson.dumps(record)) is is_shared
