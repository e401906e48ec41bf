from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
import types
from pathlib import Path

import pytest

from fanfare.server import parent_process


class GunicornWorker:
    ppid = 4711
    cfg = types.SimpleNamespace(workers=4)

    async def callback_notify(self): ...


def test_pid_of_a_gunicorn_worker_is_that_of_its_master():
    config = types.SimpleNamespace(callback_notify=GunicornWorker().callback_notify)
    assert parent_process.pid(config) == 4711
    assert parent_process.workers(config) == 4


def test_a_server_that_was_not_started_as_a_child_has_no_parent():
    assert parent_process.pid(types.SimpleNamespace(callback_notify=None, workers=2)) is None


def test_workers_of_uvicorn_is_its_own_number():
    assert parent_process.workers(types.SimpleNamespace(callback_notify=None, workers=2)) == 2


LISTS_CHILDREN = pytest.mark.skipif(
    not Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").exists(), reason="a kernel without lists of children"
)


@LISTS_CHILDREN
def test_younger_children_are_those_that_started_later_and_live():
    command = [sys.executable, "-c", "input()"]
    children = [subprocess.Popen(command, stdin=subprocess.PIPE)]
    try:
        time.sleep(0.05)  # the clock of /proc has ticks of 10 ms
        since_s = parent_process.now_s()
        time.sleep(0.05)
        children.append(subprocess.Popen(command, stdin=subprocess.PIPE))
        younger = parent_process.younger_children(os.getpid(), since_s)
        assert younger & {child.pid for child in children} == {children[1].pid}
        assert children[0].pid in parent_process.younger_children(os.getpid(), 0.0)
    finally:
        for child in children:
            child.kill()
            child.communicate()
    assert children[1].pid not in parent_process.younger_children(os.getpid(), since_s)


@LISTS_CHILDREN
def test_child_that_has_a_child_is_no_worker():
    code = (
        "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'input()']); print('up', flush=True); input()"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert child.stdout.readline() == b"up\n"
        assert child.pid not in parent_process.younger_children(os.getpid(), 0.0)
    finally:
        child.kill()
        child.communicate()


@LISTS_CHILDREN
def test_eldest_child_is_the_one_with_the_least_id():
    code = """
        import os, time
        from fanfare.server import parent_process

        parent, children = os.getpid(), []
        for is_first in (True, False):
            child = os.fork()
            if not child:
                while len(parent_process._children(parent)) < 2:
                    time.sleep(0.01)
                os._exit(parent_process.is_eldest(parent) != is_first)
            children.append(child)
        for child in children:
            os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)  # a child that was waited for is in the list no more
        assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=30)


@LISTS_CHILDREN
def test_surplus_is_of_live_workers_that_multiprocessing_spawned():
    """The resource tracker, which stays, and a worker that has ended do not count."""
    spawn = multiprocessing.get_context("spawn")
    begun = spawn.Semaphore(0)  # it starts the resource tracker
    workers = [spawn.Process(target=_serve, args=(begun,)) for _ in range(2)]
    for worker in workers:
        worker.start()
    try:
        for _ in workers:
            assert begun.acquire(timeout=30)
        assert parent_process.has_surplus(os.getpid(), 1)
        assert not parent_process.has_surplus(os.getpid(), 2)
        workers[0].kill()
        os.waitid(os.P_PID, workers[0].pid, os.WEXITED | os.WNOWAIT)
        assert not parent_process.has_surplus(os.getpid(), 1)
    finally:
        for worker in workers:
            worker.kill()
            worker.join()


def _serve(begun):
    begun.release()
    time.sleep(60)


def test_surplus_of_a_process_that_has_ended_is_none():
    assert not parent_process.has_surplus(2**22 + 1, 1)


def test_children_of_a_process_that_has_ended_are_not_known():
    assert parent_process.younger_children(2**22 + 1, 0.0) is None


async def test_heartbeat_goes_on_when_the_wall_clock_is_set_back(monkeypatch):
    """uvicorn compares wall times: 10 minutes back, and gunicorn aborts every worker 25 s later."""
    beats = []

    class Worker(GunicornWorker):
        def notify(self):
            beats.append(1)

    monkeypatch.setattr(parent_process, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    config = types.SimpleNamespace(callback_notify=Worker().callback_notify, timeout_notify=0)
    task = asyncio.ensure_future(parent_process.keep_alive(config))
    async with asyncio.timeout(20):
        while len(beats) < 5:
            await asyncio.sleep(0)
    task.cancel()


async def test_heartbeat_is_not_for_a_server_without_gunicorn():
    await parent_process.keep_alive(types.SimpleNamespace(callback_notify=None))


def report(connection):
    connection.send(parent_process.pid(types.SimpleNamespace(callback_notify=None)))


def test_pid_of_a_child_of_uvicorns_reloader_is_that_of_the_reloader():
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    child = context.Process(target=report, args=(there,))
    child.start()
    assert here.recv() == os.getpid()
    child.join()
    child.close()
    here.close()
    there.close()


def test_worker_whose_parent_was_killed_sends_itself_a_sigterm():
    """A middle process starts a worker and is killed; the worker says `left` on the pipe that it has inherited."""
    worker = textwrap.dedent(
        """
        import asyncio, os, signal, sys
        from fanfare.server import parent_process
        parent_process.POLL_SECONDS = 0.01
        async def main():
            left = asyncio.Event()
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, left.set)
            watch = asyncio.create_task(parent_process.watch(os.getppid()))
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
