"""What is kept for those who come back can be seen."""

from __future__ import annotations

from pathlib import Path

import pytest

from apps.engine import interface
from apps.engine.local import engine, worker
from tests.unit.engine.worlds import APP, Worker


async def test_the_statistics_show_how_much_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "MEASURE_S", 0.01)
    one = await Worker(engine.LocalEngine(tmp_path)).open()
    for channel, count in (("a", 3), ("b", 4)):
        await one.publish(channel, *[b"x"] * count, retention=interface.Retention(100, 60))
    await one.publish("passing", b"x")
    one.engine.save_session(APP, "token", b"12345", 60)
    assert one.engine.health().ok  # writes a record of its own, which is nobody's session

    def is_seen() -> bool:
        seen = one.engine.statistics()
        return [seen.get(name) for name in ("streams", "kept", "sessions", "sessions_bytes")] == [2, 7, 1, 5]

    await one.until(is_seen, "the sizes")
    assert one.engine.statistics()["log_bytes"] > 0
    await one.engine.close()
