"""The mutation check changes one place at a time, in the code that runs."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.mutation import mutations, runs

SOURCE = """
class Counter:
    def __init__(self):
        self._count = 0

    @property
    def count(self):
        return self._count

    @count.setter
    def count(self, count):
        self._count = count + 1


def doubled(number):
    \"\"\"Not mutated.\"\"\"
    if number > 10:
        return None
    return number + number
"""


@pytest.fixture
def module(tmp_path: Path) -> Iterator[ModuleType]:
    path = tmp_path / "counted.py"
    path.write_text(SOURCE)
    spec = importlib.util.spec_from_file_location("counted", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["counted"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["counted"]


def mutant(before: str, after: str) -> mutations.Mutant:
    [found] = [one for one in mutations.mutants(SOURCE) if (one.before, one.after) == (before, after)]
    return found


def test_mutated_function_runs_and_the_others_stay(module: ModuleType) -> None:
    doubled = module.doubled  # as another module imports it
    source = mutant("number + number", "number - number").source
    assert runs.Module(module).changed_by(source) == ["doubled"]
    runs.Module(module).replace(source)
    assert doubled(3) == 0
    assert module.Counter().count == 0


def test_weak_proxy_of_an_object_that_is_gone_is_passed_over(module: ModuleType) -> None:
    gone = weakref.proxy(module.Counter())
    assert runs.Module(module).changed_by(mutant("number + number", "number - number").source) == ["doubled"]
    del gone


def test_setter_is_mutated_without_its_property(module: ModuleType) -> None:
    counter = module.Counter()
    source = mutant("count + 1", "count - 1").source
    assert runs.Module(module).changed_by(source) == ["Counter.count"]
    runs.Module(module).replace(source)
    counter.count = 5
    assert counter.count == 4


def test_each_mutant_changes_one_place_of_one_function() -> None:
    found = list(mutations.mutants(SOURCE))
    assert [one.line for one in found] == sorted(one.line for one in found)
    assert {(one.before, one.after) for one in found} >= {
        ("0", "1"),
        ("number > 10", "number >= 10"),
        ("10", "11"),
        ("return number + number", "return None"),
    }
    assert not any("Not mutated" in one.before for one in found)


def test_sample_is_the_same_for_a_seed() -> None:
    assert mutations.sampled(SOURCE, 3, seed=1) == mutations.sampled(SOURCE, 3, seed=1)
    assert len(mutations.sampled(SOURCE, None, seed=1)) == len(list(mutations.mutants(SOURCE)))


def test_command_kills_every_mutant_of_a_small_module() -> None:
    command = [sys.executable, "-m", "tests.mutation", "protocol.names", "--at-least", "100"]
    tests = ["--tests", "tests/unit/protocol/test_names.py"]
    ended = subprocess.run([*command, *tests], capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
