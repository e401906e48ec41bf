"""The pytest plugin that runs the mutants instead of the collected tests."""

from __future__ import annotations

import ast
import collections
import contextlib
import gc
import importlib
import inspect
import os
import pickle
import signal
import sys
import tempfile
import threading
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from tests.mutation import mutations

# A mutant has this long, and this many times as long as its tests take without a mutation. More mutants than there are
# processors run at a time, and a test that waits for a condition has 30 s for it.
LIMIT_S, LIMIT_FACTOR = 60.0, 10.0


class Check:
    """`mutants`: by the module's name. Afterwards, `failed` has the tests that fail without a mutation, and `survivors`
    the mutants that no test noticed."""

    def __init__(self, mutants: Mapping[str, Sequence[mutations.Mutant]], jobs: int) -> None:
        self.failed: list[str] = ["the tests did not run"]
        self.survivors: dict[str, list[mutations.Mutant]] = {name: [] for name in mutants}
        self._mutants = mutants
        self._jobs = jobs

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        for name in self._mutants:
            importlib.import_module(name)
        calls = _in_child(lambda: _calls(session, self._mutants))
        self.failed = calls.failed
        print(f"{len(session.items)} tests ran without a mutation", file=sys.stderr, flush=True)
        if not self.failed:
            for name, mutant in self._survivors(session, calls):
                self.survivors[name].append(mutant)
                print(f"{name}, {mutant} survives", file=sys.stderr, flush=True)
        return True

    def _survivors(self, session: pytest.Session, calls: Calls) -> Iterator[tuple[str, mutations.Mutant]]:
        waiting = [(name, mutant) for name, mutants in self._mutants.items() for mutant in mutants]
        modules = {name: Module(sys.modules[name]) for name in self._mutants}
        gc.freeze()  # a fork then copies less
        running: dict[int, tuple[str, mutations.Mutant, float]] = {}  # and the time of the end
        done = 0
        while waiting or running:
            while waiting and len(running) < self._jobs:
                name, mutant = waiting.pop(0)
                module = modules[name]
                tests = calls.tests_of(name, module.changed_by(mutant.source))
                limit_s = LIMIT_S + LIMIT_FACTOR * sum(calls.seconds[index] for index in tests)
                pid = _start(session, module, mutant, tests)
                running[pid] = (name, mutant, time.monotonic() + limit_s)
            for pid, (name, mutant, until_s) in list(running.items()):
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    del running[pid]
                    done += 1
                    if done % 50 == 0:
                        print(f"{done} mutants", file=sys.stderr, flush=True)
                    if status == 0:
                        yield name, mutant
                elif time.monotonic() > until_s:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)


class Calls:
    """What the tests do without a mutation: which of them call a function, and how long they take."""

    def __init__(self) -> None:
        self.failed: list[str] = []
        self.callers: collections.defaultdict[tuple[str, str], set[int]] = collections.defaultdict(set)
        self.seconds: list[float] = []

    def tests_of(self, module: str, functions: Sequence[str]) -> list[int]:
        """Indices of the tests that call one of these functions, the fastest first."""
        found = set().union(*(self.callers[module, function] for function in functions))
        return sorted(found, key=lambda index: self.seconds[index])


def _calls(session: pytest.Session, modules: Mapping[str, object]) -> Calls:
    found = Calls()
    names = {str(sys.modules[name].__file__): name for name in modules}
    called: set[tuple[str, str]] = set()

    def note(frame: types.FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        if event == "call" and (name := names.get(code.co_filename)) is not None:
            called.add((name, code.co_qualname.partition(".<locals>")[0]))

    threading.setprofile(note)
    sys.setprofile(note)
    for index, item in enumerate(session.items):
        called.clear()
        failed, began = session.testsfailed, time.perf_counter()
        _run(session, index, index + 1)
        found.seconds.append(time.perf_counter() - began)
        if session.testsfailed > failed:
            found.failed.append(item.nodeid)
        for one in called:
            found.callers[one].add(index)
    return found


def _run(session: pytest.Session, index: int, following: int | None) -> None:
    item = session.items[index]
    after = session.items[following] if following is not None and following < len(session.items) else None
    item.config.hook.pytest_runtest_protocol(item=item, nextitem=after)


def _in_child(work: Callable[[], Calls]) -> Calls:
    """The result of work that may leave anything behind."""
    with tempfile.NamedTemporaryFile() as file:
        pid = os.fork()
        if not pid:
            _silence()
            Path(file.name).write_bytes(pickle.dumps(work()))
            os._exit(0)
        os.waitpid(pid, 0)
        found: Calls = pickle.loads(file.read())
        return found


def _start(session: pytest.Session, module: Module, mutant: mutations.Mutant, tests: Sequence[int]) -> int:
    """Returns the process that exits with 0 if all tests pass."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        _silence()
        module.replace(mutant.source)
        for index, following in zip(tests, [*tests[1:], None], strict=True):
            _run(session, index, following)
            if session.testsfailed:
                break
        else:
            status = 0
    finally:
        os._exit(status)
    return 0


def _silence() -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)


class Module:
    """An imported module. `replace` gives its functions the code of other source, in this process."""

    def __init__(self, module: types.ModuleType) -> None:
        self._filename = str(module.__file__)
        source = ast.unparse(ast.parse(inspect.getsource(module)))  # as that of a mutant
        self._codes = _functions(compile(source, self._filename, "exec"))
        # `isinstance` raises for a weak proxy of an object that is gone.
        functions = [one for one in gc.get_objects() if type(one) is types.FunctionType]
        of_module = [one for one in functions if one.__module__ == module.__name__]
        of_module.sort(key=lambda function: function.__code__.co_firstlineno)
        self._live: collections.defaultdict[tuple[str, int], list[types.FunctionType]] = collections.defaultdict(list)
        lines: collections.defaultdict[str, list[int]] = collections.defaultdict(list)
        for function in of_module:
            code = function.__code__
            known = lines[code.co_qualname]
            if code.co_firstlineno not in known:
                known.append(code.co_firstlineno)
            self._live[code.co_qualname, len(known) - 1].append(function)

    def changed_by(self, source: str) -> list[str]:
        """The names of the functions that are not the same in this source."""
        return sorted({qualname for qualname, _ in self._changed(source)})

    def replace(self, source: str) -> None:
        for key, code in self._changed(source).items():
            for function in self._live[key]:
                function.__code__ = code

    def _changed(self, source: str) -> dict[tuple[str, int], types.CodeType]:
        new = _functions(compile(source, self._filename, "exec"))
        return {key: code for key, code in new.items() if code != self._codes[key]}


def _functions(code: types.CodeType) -> dict[tuple[str, int], types.CodeType]:
    """The functions of a module and of its classes. Of several with one name, such as a property and its setter, each
    has a number."""
    found: dict[tuple[str, int], types.CodeType] = {}
    counts: collections.Counter[str] = collections.Counter()
    for constant in code.co_consts:
        if not isinstance(constant, types.CodeType):
            continue
        if constant.co_flags & inspect.CO_NEWLOCALS:
            found[constant.co_qualname, counts[constant.co_qualname]] = constant
            counts[constant.co_qualname] += 1
        else:
            found |= _functions(constant)
    return found
