"""Pages of a channel's past, from a real log."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fanfare.engine import interface
from fanfare.engine.local import engine
from fanfare.hub import event_frames, history_pages

APP, CHANNEL = "1", "orders"


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[interface.Engine]:
    local = engine.LocalEngine(tmp_path / "engine")
    await local.open(lambda entries: None, lambda reason: None)
    yield local
    await local.close()


async def keep(log: interface.Engine, *numbers: int, size: int = 100) -> list[interface.Position]:
    """Publish; where each stands."""
    receipts = await log.append(
        [
            interface.Publication(
                APP,
                CHANNEL,
                event_frames.event("n", CHANNEL, str(number)),
                retention=interface.Retention(size, 60),
            )
            for number in numbers
        ]
    )
    return [receipt.position for receipt in receipts if receipt.position is not None]


async def walk(
    log: interface.Engine, limit: int, *, newest_first: bool, max_bytes: int = history_pages.MAX_BYTES
) -> list[list[int]]:
    """The offsets of all pages."""
    pages: list[list[int]] = []
    wanted = history_pages.Range(limit=limit, newest_first=newest_first, max_bytes=max_bytes)
    while True:
        page = await history_pages.read(log, APP, CHANNEL, wanted)
        pages.append([event.offset for event in page.events])
        if page.next is None:
            return pages
        end = {"before": page.next} if newest_first else {"after": page.next}
        wanted = dataclasses.replace(wanted, **end)


async def test_pages_hold_every_event_once_in_either_direction(log: interface.Engine) -> None:
    await keep(log, *range(1, 8))
    assert await walk(log, 3, newest_first=True) == [[7, 6, 5], [4, 3, 2], [1]]
    assert await walk(log, 3, newest_first=False) == [[1, 2, 3], [4, 5, 6], [7]]
    assert await walk(log, 7, newest_first=True) == [[7, 6, 5, 4, 3, 2, 1]]


@pytest.mark.parametrize("newest_first", [False, True])
async def test_page_ends_before_its_limit_of_bytes(log: interface.Engine, *, newest_first: bool) -> None:
    await keep(log, *range(1, 6))
    size = len(event_frames.event("n", CHANNEL, "1"))
    expected = [[5, 4], [3, 2], [1]] if newest_first else [[1, 2], [3, 4], [5]]
    assert await walk(log, 10, newest_first=newest_first, max_bytes=2 * size) == expected
    assert await walk(log, 10, newest_first=newest_first, max_bytes=3 * size - 1) == expected


async def test_event_above_the_limit_of_bytes_has_a_page_of_its_own(log: interface.Engine) -> None:
    await keep(log, 1, 2)
    assert await walk(log, 10, newest_first=True, max_bytes=1) == [[2], [1], []]


async def test_event_is_returned_as_subscribers_got_it(log: interface.Engine) -> None:
    (position,) = await keep(log, 7)
    assert await history_pages.read(log, APP, CHANNEL, history_pages.Range()) == history_pages.Page(
        (history_pages.Event(1, "n", "7", None),), position
    )


async def test_sender_is_given_for_events_of_clients(log: interface.Engine) -> None:
    await log.append(
        [
            interface.Publication(
                APP,
                CHANNEL,
                event_frames.event("n", CHANNEL, "1"),
                kind,
                user_id="42",
                retention=interface.Retention(10, 60),
            )
            for kind in (interface.Kind.EVENT, interface.Kind.CLIENT_EVENT, max(interface.Kind) + 1)
        ]
    )
    page = await history_pages.read(log, APP, CHANNEL, history_pages.Range(newest_first=False))
    assert [(event.offset, event.user_id) for event in page.events] == [(1, None), (2, "42")]


async def test_trimmed_events_leave_a_gap_in_the_offsets(log: interface.Engine) -> None:
    first, *_ = await keep(log, *range(1, 8), size=3)
    page = await history_pages.read(log, APP, CHANNEL, history_pages.Range(after=first, newest_first=False))
    assert [event.offset for event in page.events] == [5, 6, 7]


async def test_channel_without_history_has_no_position(log: interface.Engine) -> None:
    assert await history_pages.read(log, APP, CHANNEL, history_pages.Range()) == history_pages.Page((), None)


@pytest.mark.parametrize("end", ["after", "before"])
async def test_position_of_another_epoch_is_reported_with_an_empty_page(log: interface.Engine, end: str) -> None:
    (position,) = await keep(log, 1)
    other = history_pages.Range(**{end: interface.Position("other", 0)})
    assert await history_pages.read(log, APP, CHANNEL, other) == history_pages.Page(
        (), position, reason="epoch_changed"
    )
    nothing = await history_pages.read(log, APP, "empty", history_pages.Range(**{end: position}))
    assert nothing == history_pages.Page((), None, reason="epoch_changed")


async def test_the_top_of_what_is_there_has_nothing_after_it(log: interface.Engine) -> None:
    (position,) = await keep(log, 1)
    page = await history_pages.read(log, APP, CHANNEL, history_pages.Range(after=position, newest_first=False))
    assert page == history_pages.Page((), position)
