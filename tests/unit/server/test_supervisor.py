from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import types

from fanfare.server import supervisor


class GunicornWorker:
    ppid = 4711
    cfg = types.SimpleNamespace(workers=4)

    async def callback_notify(self): ...


def test_a_gunicorn_worker_knows_its_master():
    config = types.SimpleNamespace(callback_notify=GunicornWorker().callback_notify)
    assert supervisor.of(config) == 4711
    assert supervisor.workers(config) == 4


def test_a_server_that_a_person_started_has_no_supervisor():
    assert supervisor.of(types.SimpleNamespace(callback_notify=None, workers=2)) is None


def test_uvicorn_knows_how_many_workers_it_was_asked_for():
    assert supervisor.workers(types.SimpleNamespace(callback_notify=None, workers=2)) == 2


def report(connection):
    connection.send(supervisor.of(types.SimpleNamespace(callback_notify=None)))


def test_a_child_of_uvicorns_reloader_knows_its_parent():
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    child = context.Process(target=report, args=(there,))
    child.start()
    assert here.recv() == os.getpid()
    child.join()
    child.close()
    here.close()
    there.close()


def test_a_worker_whose_supervisor_was_killed_ends_as_if_it_had_been_asked_to():
    """A middle process starts a worker and is killed; the worker says `left` on the pipe that it has inherited."""
    worker = textwrap.dedent(
        """
        import asyncio, os, signal, sys
        from fanfare.server import supervisor
        supervisor.POLL_SECONDS = 0.01
        async def main():
            left = asyncio.Event()
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, left.set)
            watch = asyncio.create_task(supervisor.watch(os.getppid()))
            print("watching", flush=True)
            await left.wait()
            await watch
            print("left", flush=True)
        asyncio.run(main())
        """
    )
    middle = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {worker!r}])"
    with subprocess.Popen([sys.executable, "-c", middle], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "watching\n"
        process.send_signal(signal.SIGKILL)
        assert process.stdout.read() == "left\n"
