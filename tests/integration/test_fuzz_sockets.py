"""Mutated frames cause no crash, no leak and no lost event of other clients. `python -m tests.fuzz` sends a million."""

from __future__ import annotations

import os
from collections.abc import Callable

from tests.fuzz import campaign
from tests.harness import servers

FRAMES = int(os.environ.get("FUZZ_FRAMES", "200000"))
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
