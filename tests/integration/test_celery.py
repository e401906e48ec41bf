"""The task of docs/how-to/drf-and-celery.md in a real Celery worker, whose processes are forked."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import servers, sockets
from tests.harness.deployments import REPOSITORY
from tests.unit.docs import pages

# The broker is a folder, so the test needs no other server.
APP = """
import celery
import django

django.setup()
app = celery.Celery("shop", broker="filesystem://")
folders = {name: FOLDER for name in ("data_folder_in", "data_folder_out", "control_folder")}
app.conf.update(broker_transport_options=folders, broker_connection_retry_on_startup=True)
app.set_default()
"""
STOP_S = 30.0


@pytest.fixture
def project(uvicorn: servers.Server, tmp_path: Path) -> Iterator[dict[str, str]]:
    """A project's module `shop` with the task, and a worker with two processes. Yields the environment."""
    queue = tmp_path / "queue"
    queue.mkdir()
    code = pages.snippet("docs/how-to/drf-and-celery.md", "def export", language="python")
    (tmp_path / "shop.py").write_text(APP.replace("FOLDER", repr(str(queue))) + code)
    own = {"DJANGO_SETTINGS_MODULE": "myproject.settings", "PYTHONPATH": f"{tmp_path}:{REPOSITORY}"}
    environment = uvicorn.deployment.environment(**own)
    command = [sys.executable, "-m", "celery", "--app", "shop", "worker", "--pool", "prefork", "--concurrency", "2"]
    with (tmp_path / "log").open("wb") as log:
        worker = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log)
    try:
        yield environment
    finally:
        worker.terminate()
        worker.wait(STOP_S)


async def test_task_of_the_guide_publishes_from_a_forked_process(
    uvicorn: servers.Server, project: dict[str, str]
) -> None:
    orders = range(1, 5)
    async with sockets.connect(uvicorn) as socket:
        for order in orders:
            await socket.subscribe(f"private-export-{order}")
        code = f"import shop; [shop.export.delay(order) for order in {list(orders)}]"
        subprocess.run([sys.executable, "-c", code], env=project, check=True)
        received: dict[str, list[int]] = {f"private-export-{order}": [] for order in orders}
        for _ in range(11 * len(orders)):
            frame = await socket.receive()
            received[str(frame.channel)].append(frame.decoded["percent"])
    assert list(received.values()) == [list(range(0, 101, 10))] * len(orders)
