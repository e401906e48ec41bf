"""The engine's statistics show how much is kept for clients that come back."""

from __future__ import annotations

from pathlib import Path

import pytest

from fanfare.engine import interface
from fanfare.engine.local import engine, sessions, worker
from tests.unit.engine.workers import APP, Worker


async def test_statistics_show_how_much_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "MEASURE_S", 0.01)
    one = await Worker(engine.LocalEngine(tmp_path)).open()
    for channel, count in (("a", 3), ("b", 4)):
        await one.publish(channel, *[b"x"] * count, retention=interface.Retention(100, 60))
    await one.publish("passing", b"x")
    one.engine.save_session(APP, "token", b"12345", 60)

    def is_seen() -> bool:
        seen = one.engine.statistics()
        names = ("streams", "kept", "sessions", "sessions_late", "sessions_bytes")
        return [seen.get(name) for name in names] == [2, 7, 1, 0, 5]

    await one.until(is_seen, "the sizes")
    assert one.engine.statistics()["log_bytes"] > 0
    await one.engine.close()


async def test_only_the_newest_late_sessions_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "MEASURE_S", 0.01)
    monkeypatch.setattr(sessions, "SWEEP_SESSIONS", 2)
    monkeypatch.setattr(interface, "LATE_SESSIONS", 3)
    one = await Worker(engine.LocalEngine(tmp_path)).open()
    for number in range(10):
        one.engine.save_session(APP, f"late-{number}", b"record", number - 20)
        one.engine.save_session(APP, f"here-{number}", b"record", 60)
    await one.until(lambda: one.engine.statistics().get("sessions") == 13, "the end of the others")
    assert one.engine.statistics()["sessions_late"] == 3
    assert one.engine.statistics()["sessions_dropped"] == 7
    kept = [number for number in range(10) if (await one.engine.take_session(APP, f"late-{number}", "1.1")).record]
    assert kept == [7, 8, 9]
    assert (await one.engine.take_session(APP, "here-0", "1.1")).record == b"record"
    await one.engine.close()
