"""Mutated frames over real sockets: no crash, no leak, no neighbour disturbed. A million: `python -m tests.fuzz`."""

from __future__ import annotations

import os
from collections.abc import Callable

from tests.fuzz import campaign
from tests.harness import servers

FRAMES = int(os.environ.get("FUZZ_FRAMES", "200000"))
SEED = int(os.environ.get("FUZZ_SEED", "1"))


async def test_mutated_frames_do_no_harm(fleet: servers.Fleet, start: Callable[..., servers.Server]) -> None:
    """No traceback in the log either, which every test of a server is checked for."""
    deployment = fleet.deployment()
    tenant = campaign.application(deployment)
    server = start("gunicorn", deployment)
    findings = await campaign.run(server, tenant, FRAMES, SEED)
    assert findings.tally.connections > FRAMES / 1_000
    assert findings.tally.received > FRAMES / 10, "frames that reach nothing test nothing"
    assert findings.published > 20
