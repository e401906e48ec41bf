"""The real hub and protocol keep the promises of recovery in every order of steps, and the explorer finds faults."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.model import explore
from tests.model.clients import Violation
from tests.model.clock import loop
from tests.model.deployment import Bounds, play
from tests.unit.engine.patches import Patch

SMALL = Bounds(workers=2, clients=1, events=2, kept=1, faults=1)
SEEDS = 250  # of each part

_RECOVERY = "fanfare.hub.recovery:Recoveries"
_STORE = "tests.model.store:Store"

FAULTS = {
    "false recovered after a new generation": Patch(f"{_STORE}.recover", 'reason = "epoch_changed"', "reason = None"),
    "false recovered after the history has expired": Patch(
        f"{_STORE}.recover", 'reason = "position_expired"', "reason = None"
    ),
    "recovered entry that the client has": Patch(
        f"{_STORE}.recover", "self.history(channel, after.offset)", "self.history(channel, 0)"
    ),
    "live before the recovery is complete": Patch(f"{_RECOVERY}.begin", "result.complete and not waits", "not waits"),
    "position acknowledged before the pong": Patch(
        "fanfare.protocol.ack_tracker:AckTracker.pinged",
        "self._pings.append((now, dict(sent)))",
        "self._acknowledge(dict(sent))",
    ),
    "report of a loss that is acknowledged without a pong": Patch(
        "fanfare.protocol.ack_tracker:AckTracker.begin", "if lost is not None:", "if False:"
    ),
    "gap that closes no connection": Patch(
        "fanfare.hub.hub:Hub._close_after_gap", "self._close_all(affected", "self._close_all([]"
    ),
    "delivery between a gap and the close": Patch(
        "fanfare.hub.hub:Hub._is_after_gap", "return None in self._gaps or", "return False and"
    ),
    "gap that closes connections of other partitions": Patch("fanfare.hub.hub:Hub._is_in", "== partition", "!= None"),
    "member that does not leave": Patch(
        "fanfare.hub.hub:Hub._leave", "if subscription.member is not None:", "if False:"
    ),
    "event id that is ahead of the recovered entries": Patch(
        "fanfare.sse.recovery:_before", "return asked.position", "return result.position"
    ),
    "event stream that reports no failed recovery": Patch(
        "fanfare.sse.recovery:outcome", "reason = reason or result.reason", "pass"
    ),
    "event stream that does not report a recovery that broke off": Patch(
        "fanfare.sse.streams:Stream.recovery_failed",
        "self._writer.state(subscription.channel.name, statement, subscription.position)",
        "pass",
    ),
    "connections that stay open when their worker goes over to a new store": Patch(
        "fanfare.hub.hub:Hub.stop", "self.by_socket.values()", "()"
    ),
    "event stream resumed at another channel's position": Patch(
        "fanfare.sse.recovery:_return", "positions[index]", "positions[0]"
    ),
}
STAGED = {
    "gap of an engine that holds back what the next one delivers": Patch(
        "fanfare.hub.hub:Hub.stop", "self._gaps.clear()", "pass"
    ),
}
# Rare orders find these: the search begins at a seed that is known to find them.
FIRST_SEEDS = {
    "position acknowledged before the pong": 4837,
    "report of a loss that is acknowledged without a pong": 7013512,
    "delivery between a gap and the close": 429,
    "event stream that does not report a recovery that broke off": 5540,
    "event stream resumed at another channel's position": 107,
}


def test_no_order_of_five_actions_breaks_an_invariant() -> None:
    found = explore.explore(SMALL, 5)
    assert found.violation == ""
    assert (found.depth, found.states > 1_000) == (5, True)


@pytest.mark.parametrize("part", range(4))
def test_random_runs_break_no_invariant(part: int) -> None:
    seeds = range(part * SEEDS, (part + 1) * SEEDS)
    assert [(seed, found.violation) for seed in seeds if (found := explore.simulate(seed)).violation] == []


def test_gaps_and_closes_while_workers_go_over_to_another_store_break_no_invariant() -> None:
    seeds = range(SEEDS)
    found = [(seed, explore.simulate(seed, bounds=explore.MOVING).violation) for seed in seeds]
    assert [one for one in found if one[1]] == []


def test_run_of_a_seed_is_the_same_each_time() -> None:
    assert list(explore.choices_of(7)) == list(explore.choices_of(7))
    assert list(explore.choices_of(7)) != list(explore.choices_of(8))


@pytest.fixture
def fault(request: pytest.FixtureRequest) -> Iterator[Patch]:
    patch = {**FAULTS, **STAGED}[request.param]
    undo = patch.apply()
    yield patch
    undo()


@pytest.mark.parametrize(("fault", "first"), [(name, FIRST_SEEDS.get(name, 0)) for name in FAULTS], indirect=["fault"])
def test_planted_fault_is_found_and_shrunk(fault: Patch, first: int) -> None:
    seed, found = next(
        (seed, found) for seed in range(first, first + 2_000) if (found := explore.simulate(seed)).violation
    )
    assert len(found.actions) <= 30, found.actions
    with loop() as on, pytest.raises((Violation, AssertionError)):
        play(on, explore.bounds_of(seed), found.actions, skip=True)


@pytest.mark.parametrize("fault", STAGED, indirect=True)
def test_planted_fault_is_found_while_workers_go_over(fault: Patch) -> None:
    found = next(found for seed in range(SEEDS) if (found := explore.simulate(seed, bounds=explore.MOVING)).violation)
    assert len(found.actions) <= 30, found.actions
