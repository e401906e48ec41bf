"""A token changes hands; one that does so again and again belongs to nobody."""

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
    """A connected page that remembers what was done to it."""

    def __init__(self, socket_id: str) -> None:
        self.socket_id = socket_id
        self.evicted = False
        self.without_token = False
        self.slot: set[session_owners.Holder] | None = None

    def look(self) -> None:
        pass

    def evict(self) -> None:
        self.evicted = True

    def keep(self) -> None:
        pass

    def forget_token(self) -> None:
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


async def test_the_newer_socket_has_the_token_wherever_the_older_one_is(
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


async def test_a_page_that_comes_back_after_it_was_gone_evicts_nobody(
    workers: list[session_owners.SessionOwners],
) -> None:
    here, there = workers
    for number in range(5):
        page = Page(f"1.{number}")
        worker = (here, there)[number % 2]
        assert worker.take("1", TOKEN, page)
        worker.release("1", TOKEN, page)
        assert not page.evicted


async def test_a_token_that_changes_hands_twice_in_a_short_time_is_given_to_nobody(
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
    clock.now += session_owners.REFUSED_SECONDS + 1
    assert here.take("1", TOKEN, Page("1.6"))


async def test_the_same_after_a_while_is_an_ordinary_takeover(
    workers: list[session_owners.SessionOwners], clock: Clock
) -> None:
    here, there = workers
    pages = [Page(f"1.{number}") for number in range(3)]
    for worker, page, older in zip((here, there, here), pages, (None, *pages), strict=False):
        await taken(worker, page)
        if older is not None:
            await until(lambda older=older: older.evicted)
            await until(lambda: all(one._evicted.get(("1", TOKEN)) == clock.now for one in workers))
        clock.now += session_owners.SHARED_SECONDS + 1
    assert not pages[2].evicted
    assert not pages[1].without_token


async def test_what_is_over_is_forgotten_and_what_happened_again_is_not(
    workers: list[session_owners.SessionOwners], clock: Clock
) -> None:
    here, _ = workers
    for seconds, token in ((0, "a"), (5, "b"), (6, "a"), (4.5, "c")):
        clock.now += seconds
        await taken(here, Page(f"1.{seconds}"), token)
        await taken(here, Page(f"2.{seconds}"), token)
        await until(lambda: all(clock.now in one._evicted.values() for one in workers))
        for key in list(here._holders):
            here._drop(key)
    assert [token for _, token in here._evicted] == ["a", "c"]
