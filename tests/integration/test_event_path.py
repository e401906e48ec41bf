"""docs/explanation/how-an-event-travels.md names the files that a publish and a subscribe really run through."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SLACK = 7  # calls: a busy machine adds waits
PAGE = ROOT / "docs" / "explanation" / "how-an-event-travels.md"


@pytest.fixture(scope="module")
def recorded() -> dict[str, list[str]]:
    """The files in the order of the calls."""
    command = [sys.executable, "-m", "tests.harness.call_path"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
    return {walk: [file for file, _ in calls] for walk, calls in json.loads(ran.stdout).items()}


def figures() -> dict[str, tuple[int, int]]:
    """The files and calls of each walk, as the page states them."""
    _, _, section = PAGE.read_text().partition("\n## Length of the path\n")
    found = re.findall(r"^\| (\w+) .*\| (\d+) \| (\d+) \|$", section, re.MULTILINE)
    walks = {"Publish": "publish", "First": "subscribe"}
    return {walks[name]: (int(files), int(calls)) for name, files, calls in found}


def steps(title: str) -> list[list[str]]:
    """The files of each row of the table below a heading."""
    _, _, section = PAGE.read_text().partition(f"\n## {title}\n")
    table, _, _ = section.partition("\n## ")
    rows = [line.split("|")[2] for line in table.splitlines() if line.startswith("| ")][1:]
    return [re.findall(r"`([\w/]+\.py)`", row) for row in rows]


@pytest.mark.parametrize(
    ("walk", "title"), [("publish", "One publish, step by step"), ("subscribe", "One subscribe, step by step")]
)
def test_files_of_the_page_are_called_in_its_order(recorded: dict[str, list[str]], walk: str, title: str) -> None:
    called = recorded[walk]
    named = steps(title)
    assert len(named) >= 7
    position = 0
    for files in named:
        assert files
        missing = [file for file in files if file not in called[position:]]
        assert not missing, f"{walk}: not called after {called[position - 1]}: {missing}"
        position = called.index(files[0], position)


@pytest.mark.parametrize("walk", ["publish", "subscribe"])
def test_way_of_an_event_is_not_longer_than_the_page_says(recorded: dict[str, list[str]], walk: str) -> None:
    files, calls = figures()[walk]
    called = recorded[walk]
    assert len(set(called)) <= files + 1, sorted(set(called))
    assert len(called) <= calls + SLACK, called
