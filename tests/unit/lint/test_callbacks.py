"""The search for callbacks finds every form, and each place that it finds has a row with a proof that exists."""

from __future__ import annotations

from pathlib import Path

from tests.lint import callbacks

TESTS = Path(callbacks.__file__).resolve().parents[1]

SOURCE = """
class Timer:
    def start(self, loop, tasks, executor, hub):
        loop.call_later(1, self.turn)
        loop.call_soon_threadsafe(functools.partial(self.turn, 1))
        threading.Thread(target=self.work, daemon=True)
        tasks.run("name", self.work)
        executor.submit(self.work)
        hub.on_control("name", self.obey)
        subprocess.run("name", self.no_callback)
"""


def test_search_finds_each_form_of_a_callback(tmp_path: Path) -> None:
    (tmp_path / "timers.py").write_text(SOURCE)
    found = [(place.where, place.call, place.given) for place in callbacks.places(tmp_path)]
    assert found == [
        ("Timer.start", "call_later", "self.turn"),
        ("Timer.start", "call_soon_threadsafe", "functools.partial(self.turn, 1)"),
        ("Timer.start", "Thread", "self.work"),
        ("Timer.start", "run", "self.work"),
        ("Timer.start", "submit", "self.work"),
        ("Timer.start", "on_control", "self.obey"),
    ]


def test_every_place_has_a_row() -> None:
    """A new callback: say in tests/lint/callbacks.py what takes its exception, and inject one."""
    needed = {(place.path, place.given) for place in callbacks.places() if callbacks.needs_row(place)}
    found = {(place.path, place.given) for place in callbacks.places()}
    assert needed - set(callbacks.TABLE) == set(), "add a row to TABLE in tests/lint/callbacks.py"
    assert set(callbacks.TABLE) - found == set(), (
        "these rows of TABLE in tests/lint/callbacks.py have no place any more"
    )


def test_every_proof_exists() -> None:
    for key, (_, proof) in callbacks.TABLE.items():
        if not proof.startswith(("unit/", "integration/")):
            continue
        path, _, test = proof.partition("::")
        assert (TESTS / path).exists(), key
        if test:
            assert f"def {test}(" in (TESTS / path).read_text(encoding="utf-8"), (key, test)
