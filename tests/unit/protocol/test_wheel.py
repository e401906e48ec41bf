"""Pages are looked at when they said, and the wheel rests when nobody waits."""

from __future__ import annotations

import asyncio

from fanfare.protocol import wheel
from tests.harness import waiting


class Page:
    def __init__(self, name: str, seen: list[str]) -> None:
        self.slot: set[wheel.Page] | None = None
        self._name, self._seen = name, seen

    def look(self) -> None:
        self._seen.append(self._name)


async def test_each_is_looked_at_once_in_the_order_of_their_times() -> None:
    seen: list[str] = []
    turning = wheel.Wheel()
    first, second, moved, gone = (Page(name, seen) for name in ("first", "second", "moved", "gone"))
    turning.put(second, 0.2)
    turning.put(first, 0.0)
    turning.put(moved, 0.1)
    turning.put(gone, 0.1)
    turning.put(moved, 0.3)
    turning.remove(gone)
    turning.remove(gone)

    async def look() -> bool:
        return len(seen) == 3 and turning._timer is None

    await waiting.until_async(look, 5, "all looks, and the wheel at rest")
    assert seen == ["first", "second", "moved"]


async def test_a_page_that_takes_another_one_out_spares_it_the_look() -> None:
    seen: list[str] = []
    turning = wheel.Wheel()

    class Jealous(Page):
        other: Page

        def look(self) -> None:
            super().look()
            turning.remove(self.other)

    one, two = Jealous("x", seen), Jealous("x", seen)
    one.other, two.other = two, one
    turning.put(one, 0.1)
    turning.put(two, 0.1)
    while turning._timer is not None:
        await asyncio.sleep(wheel.TURN_S / 10)
    assert seen == ["x"]
