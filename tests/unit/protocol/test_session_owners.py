"""Ownership of resume tokens: the newest socket owns one; a token of several pages is refused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fanfare.engine.local import engine
from fanfare.hub import hub as hubs
from fanfare.protocol import session_owners
from tests.harness import waiting

TOKEN = "token-token-token"


class Page:
    """A connected page that records the calls of `SessionOwners`."""

    def __init__(self, socket_id: str) -> None:
        self.socket_id = socket_id
        self.evicted = False
        self.without_token = False
        self.slot: set[session_owners.SessionOwner] | None = None

    def due(self) -> None:
        pass

    def evict(self) -> None:
        self.evicted = True

    def save(self) -> None:
        pass

    def lose_token(self) -> None:
        self.without_token = True


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def workers(tmp_path: Path, clock: Clock) -> AsyncIterator[list[session_owners.SessionOwners]]:
    """Two workers of one deployment."""
    mine = [hubs.Hub(engine.LocalEngine(tmp_path)) for _ in range(2)]
    tokens = [session_owners.SessionOwners(hub, clock) for hub in mine]
    for hub in mine:
        await hub.start()
    yield tokens
    for hub in mine:
        await hub.stop()


async def taken(worker: session_owners.SessionOwners, page: Page, token: str = TOKEN) -> None:
    """Take it, and wait until the log says so: between two that do it at once the log decides."""
    assert worker.take("1", token, page)
    await until(lambda: ("1", token) in worker._confirmed)


async def until(condition: object, within: float = 5) -> None:
    async def look() -> object:
        return condition()  # type: ignore[operator]

    await waiting.until_async(look, within, "the other worker to hear of it")


async def test_newest_socket_owns_the_token_on_any_worker(
    workers: list[session_owners.SessionOwners],
) -> None:
    here, there = workers
    for number, (first, second) in enumerate(((here, here), (here, there))):
        token = f"{TOKEN}-{number}"
        old, new = Page("1.1"), Page("1.2")
        await taken(first, old, token)
        await taken(second, new, token)
        await until(lambda old=old: old.evicted)
        assert not new.evicted
        first.release("1", token, old)
        assert second.take("1", token, Page("1.3"))
        await until(lambda new=new: new.evicted or new.without_token)


async def test_page_that_was_gone_comes_back_without_an_eviction(
    workers: list[session_owners.SessionOwners],
) -> None:
    here, there = workers
    for number in range(5):
        page = Page(f"1.{number}")
        worker = (here, there)[number % 2]
        assert worker.take("1", TOKEN, page)
        worker.release("1", TOKEN, page)
        assert not page.evicted


async def test_token_that_changes_its_owner_twice_in_a_short_time_is_refused(
    workers: list[session_owners.SessionOwners], clock: Clock
) -> None:
    here, there = workers
    pages = [Page(f"1.{number}") for number in range(3)]
    await taken(here, pages[0])
    await taken(there, pages[1])
    await until(lambda: pages[0].evicted)
    assert here.take("1", TOKEN, pages[2])
    await until(lambda: pages[1].without_token and pages[2].without_token)
    assert not pages[1].evicted
    assert not pages[2].evicted
    assert not here.take("1", TOKEN, Page("1.9"))
    await until(lambda: not there.take("1", TOKEN, Page("1.8")))
    assert here.take("2", TOKEN, Page("1.7")), "another application's token is another token"
    clock.now += session_owners.REFUSED_S + 1
    assert here.take("1", TOKEN, Page("1.6"))


async def test_token_that_changes_its_owner_again_later_is_given_away(
    workers: list[session_owners.SessionOwners], clock: Clock
) -> None:
    here, there = workers
    pages = [Page(f"1.{number}") for number in range(3)]
    for worker, page, older in zip((here, there, here), pages, (None, *pages), strict=False):
        await taken(worker, page)
        if older is not None:
            await until(lambda older=older: older.evicted)
            await until(lambda: all(one._evicted.get(("1", TOKEN)) == clock.now for one in workers))
        clock.now += session_owners.SHARED_S + 1
    assert not pages[2].evicted
    assert not pages[1].without_token


async def test_old_evictions_are_forgotten_and_repeated_ones_are_not(
    workers: list[session_owners.SessionOwners], clock: Clock
) -> None:
    here, _ = workers
    for seconds, token in ((0, "a"), (5, "b"), (6, "a"), (4.5, "c")):
        clock.now += seconds
        await taken(here, Page(f"1.{seconds}"), token)
        await taken(here, Page(f"2.{seconds}"), token)
        await until(lambda: all(clock.now in one._evicted.values() for one in workers))
        for key in list(here._owners):
            here._drop(key)
    assert [token for _, token in here._evicted] == ["a", "c"]


async def test_number_of_remembered_evictions_is_bounded(
    workers: list[session_owners.SessionOwners], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_owners, "MAX_NOTED", 3)
    here, _ = workers
    for number in range(10):
        for socket_id in ("1.1", "1.2"):
            await taken(here, Page(f"{socket_id}{number}"), f"{TOKEN}-{number}")
    assert len(here._evicted) == 3


async def test_failure_to_save_one_page_leaves_the_others(workers: list[session_owners.SessionOwners]) -> None:
    class Failing(Page):
        def save(self) -> None:
            raise ValueError("no record")

    class Saved(Page):
        saves = 0

        def save(self) -> None:
            self.saves += 1

    here, _ = workers
    page = Saved("1.2")
    here.take("1", "a" * 20, Failing("1.1"))
    here.take("1", "b" * 20, page)
    here._save_all()
    assert page.saves == 1
