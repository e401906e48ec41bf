"""Deployments whose workers and store can fail: what `failures.FailureConformance` needs of each engine."""

from __future__ import annotations

import abc
import asyncio
import contextlib
import multiprocessing
import os
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from fanfare.engine import interface
from tests.unit.engine.patches import Patch
from tests.unit.engine.workers import Worker

P = ParamSpec("P")
T = TypeVar("T")

START_S = 30.0
APPEND_TIMEOUT_S = 1.0
LOG_SECONDS = 0.5  # entries without history are trimmed after so long, if a test asks for it


class Deployment(abc.ABC):
    """Workers in this process, workers in processes of their own, and their store.

    `mutations` are applied in every process. `lease_s`: a worker that was killed is removed within this time.
    `can_cut`: whether workers reach the store through a network.
    """

    lease_s: float
    can_cut = True

    def __init__(self) -> None:
        self.mutations: Sequence[Patch] = ()
        self._workers: list[Worker] = []
        self._processes: list[WorkerProcess] = []

    @abc.abstractmethod
    def engine(self, *, log_seconds: float) -> Callable[[], interface.Engine]:
        """How one more worker makes its engine; picklable."""

    @abc.abstractmethod
    def prepare(self) -> Callable[[], None]:
        """What a worker's process does first: shorter leases and trims; picklable."""

    @abc.abstractmethod
    def stop_store(self) -> None:
        """No worker reaches the store, and each notices it."""

    @abc.abstractmethod
    def start_store(self) -> None:
        """After `stop_store`."""

    @abc.abstractmethod
    def hold_store(self) -> contextlib.AbstractContextManager[None]:
        """Inside the block no write ends, and none fails."""

    @abc.abstractmethod
    def copy_store(self) -> None:
        """Make a backup of everything in the store."""

    @abc.abstractmethod
    def restore_store(self) -> None:
        """Put the backup back, while the workers run."""

    @abc.abstractmethod
    def stored(self) -> int:
        """How many entries the log holds."""

    def cut(self, worker: Worker) -> None:
        """Let what a worker and the store send each other vanish."""
        raise NotImplementedError

    def heal(self, worker: Worker) -> None:
        """After `cut`."""
        raise NotImplementedError

    async def hire(self, *, log_seconds: float = 20.0) -> Worker:
        """Open one more worker in this process."""
        self.prepare()()
        worker = Worker(self.engine(log_seconds=log_seconds)())
        self._workers.append(worker)
        return await worker.open()

    async def process(self, *, log_seconds: float = 20.0) -> WorkerProcess:
        """Open one more worker in a process of its own."""
        process = WorkerProcess(self.prepare(), self.engine(log_seconds=log_seconds), self.mutations)
        self._processes.append(process)
        await asyncio.to_thread(process.wait)
        return process

    async def close(self) -> None:
        for process in self._processes:
            process.kill()
        for worker in self._workers:
            await worker.engine.close()


class DeploymentOverLines(Deployment):
    """Each worker reaches the store through a line of its own, which `engine` adds to `_lines`."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = Path(tempfile.mkdtemp(prefix="fanfare-lines-"))
        self._lines: list[Line] = []
        self._line_of: dict[int, Line] = {}

    async def hire(self, *, log_seconds: float = 20.0) -> Worker:
        worker = await super().hire(log_seconds=log_seconds)
        self._line_of[id(worker)] = self._lines[-1]
        return worker

    async def close(self) -> None:
        for line in self._lines:
            line.heal()
            line.accept()
        await super().close()
        for line in self._lines:
            line.close()
        shutil.rmtree(self._folder)

    def cut(self, worker: Worker) -> None:
        self._line_of[id(worker)].cut()

    def heal(self, worker: Worker) -> None:
        self._line_of[id(worker)].heal()

    def stop_store(self) -> None:
        for line in self._lines:
            line.refuse()

    def start_store(self) -> None:
        for line in self._lines:
            line.accept()


class WorkerProcess:
    """A worker in a process of its own, which runs functions that the test names."""

    def __init__(
        self, prepare: Callable[[], None], make: Callable[[], interface.Engine], mutations: Sequence[Patch]
    ) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__, "pytest", "fanfare.engine.local.engine"])
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_main, args=(theirs, prepare, make, mutations), daemon=True)
        self._process.start()
        theirs.close()

    def wait(self) -> None:
        """Until the worker is open."""
        assert self._pipe.poll(START_S), "the worker's process did not start"
        answer = self._pipe.recv()
        if isinstance(answer, BaseException):
            raise answer

    async def run(
        self, function: Callable[Concatenate[Worker, P], Awaitable[T]], *arguments: P.args, **options: P.kwargs
    ) -> T:
        """Run a coroutine function of a module there, with its worker; its answer."""

        def call() -> Any:
            self._pipe.send((function, arguments, options))
            assert self._pipe.poll(START_S), f"{function.__name__} did not end"
            return self._pipe.recv()

        answer = await asyncio.to_thread(call)
        if isinstance(answer, BaseException):
            raise answer
        return answer  # type: ignore[no-any-return]

    def kill(self) -> None:
        """SIGKILL, and wait for the end. Idempotent."""
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def freeze(self) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, signal.SIGCONT)


def _main(
    pipe: Connection, prepare: Callable[[], None], make: Callable[[], interface.Engine], mutations: Sequence[Patch]
) -> None:
    prepare()
    for patch in mutations:
        patch.apply()
    asyncio.run(_serve(pipe, make))


async def _serve(pipe: Connection, make: Callable[[], interface.Engine]) -> None:
    try:
        worker = await Worker(make()).open()
    except Exception as error:
        pipe.send(error)
        raise
    pipe.send(None)
    while True:
        function, arguments, options = await asyncio.to_thread(pipe.recv)
        try:
            answer = await function(worker, *arguments, **options)
        except Exception as error:  # noqa: BLE001  (the test raises it)
            answer = error
        pipe.send(answer)


class Line:
    """A Unix socket that carries a worker's connections to its store's socket, in threads of its own."""

    def __init__(self, path: Path, store: Path) -> None:
        self._store = store
        self._open = threading.Event()  # clear: what comes is kept back
        self._open.set()
        self._refusing = False
        self._ends: set[socket.socket] = set()
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._server.bind(str(path))
        self._server.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Keep everything back, in both directions. Nothing is reset."""
        self._open.clear()

    def heal(self) -> None:
        self._open.set()

    def refuse(self) -> None:
        """Drop all connections, and each new one at once."""
        self._refusing = True
        for end in list(self._ends):
            _shut(end)

    def accept(self) -> None:
        """After `refuse`."""
        self._refusing = False

    def close(self) -> None:
        self._open.set()
        self.refuse()
        _shut(self._server)
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                here, _ = self._server.accept()
            except OSError:
                return
            if self._refusing:
                here.close()
                continue
            there = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                there.connect(str(self._store))
            except OSError:
                here.close()
                there.close()
                continue
            self._ends |= {here, there}
            for source, target in ((here, there), (there, here)):
                threading.Thread(target=self._carry, args=(source, target), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self._open.wait()
                target.sendall(data)
        for end in (source, target):
            _shut(end)
        self._ends.discard(source)
        source.close()


def _shut(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)


@contextlib.asynccontextmanager
async def closing(deployment: Deployment) -> AsyncIterator[Deployment]:
    try:
        yield deployment
    finally:
        await deployment.close()
