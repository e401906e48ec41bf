"""Mutated frames and requests cause no crash, no leak and no lost event of other clients. `python -m tests.fuzz` sends
a million.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from tests.fuzz import campaign, requests
from tests.harness import servers

FRAMES = int(os.environ.get("FUZZ_FRAMES", "200000"))
REQUESTS = int(os.environ.get("FUZZ_REQUESTS", "1600"))
SEED = int(os.environ.get("FUZZ_SEED", "1"))


async def test_mutated_frames_do_no_harm(fleet: servers.Fleet, start: Callable[..., servers.Server]) -> None:
    """The fixtures also check that no traceback is logged."""
    deployment = fleet.deployment()
    tenant = campaign.application(deployment)
    server = start("gunicorn", deployment)
    findings = await campaign.run(server, tenant, FRAMES, SEED)
    assert findings.tally.connections > FRAMES / 1_000
    assert findings.tally.received > FRAMES / 10, "too few answers: the frames did not reach the protocol"
    assert findings.published > 20


@pytest.mark.filterwarnings("ignore::jwt.warnings.InsecureKeyLengthWarning")
async def test_mutated_requests_do_no_harm(fleet: servers.Fleet, start: Callable[..., servers.Server]) -> None:
    """Heads, handshakes, JSON, event streams, tokens, cursors and proxy headers; the fixtures check for tracebacks."""
    deployment = fleet.deployment(**requests.SETTINGS)
    tenant = campaign.application(deployment)
    statuses = await requests.run(start("gunicorn", deployment), tenant, REQUESTS, SEED)
    assert statuses["200"] > 0, statuses
    assert statuses["101"] > 0, statuses
