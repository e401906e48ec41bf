"""Deploys with open sockets: clients come back and miss no event. `python -m tests.deploys` has 5,000 of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.deploys import run, ways
from tests.harness import servers

Start = Callable[..., servers.Server]

SOCKETS = 240  # most workers have more than the number that is closed at once
CODES = {4200, 1012}
STAYS_OPEN = {"hup", "usr2", "max-requests", "uvicorn-hup", "machines"}  # a worker serves, or its successor starts


@pytest.mark.parametrize(
    "how",
    [
        pytest.param("hup", id="gunicorn HUP"),
        pytest.param("usr2", id="gunicorn USR2"),
        pytest.param("max-requests", id="gunicorn --max-requests"),
        pytest.param("uvicorn-hup", id="uvicorn --workers HUP"),
        pytest.param("container", id="stop of a container"),
        pytest.param("activated", id="restart with socket activation"),
        pytest.param("kill", id="SIGKILL of the master"),
        pytest.param("machines", id="restart of two machines in turn"),
    ],
)
async def test_clients_return_after_a_deploy_and_miss_no_event(start: Start, fleet: servers.Fleet, how: str) -> None:
    if ways.WAYS[how].command == servers.CONTAINER:
        ways.require_namespaces()
    with ways.WAYS[how].running(start, fleet) as server:
        result = await run.play(how, server, fleet, sockets=SOCKETS)
    assert result.faults == [], result.text()
    assert result.moved == SOCKETS, result.text()
    assert set(result.codes) <= CODES, result.text()
    if how in STAYS_OPEN:
        assert result.refused == 0, result.text()
