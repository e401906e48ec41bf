"""All runs up to a number of actions, and random runs with a seed, which are shrunk when they break an invariant."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from tests.model.clients import Violation
from tests.model.clock import loop
from tests.model.deployment import Action, Bounds, Deployment, play

# In turn: many clients, most of them with positions; two pages with resume tokens; and readers of event streams.
PROFILES = (
    Bounds(workers=3, clients=4, events=40, kept=5, faults=8, tokens=1, waits=True, moves=2),
    Bounds(workers=2, clients=2, events=40, kept=20, faults=4, tokens=2, waits=True, moves=1),
    Bounds(workers=2, clients=3, events=40, kept=8, faults=6, streams=2, waits=True, moves=1),
)
# Workers go over to another store in stages, with gaps, closes and refused writes between them.
MOVING = Bounds(
    workers=2, clients=4, events=40, kept=8, faults=4, tokens=1, streams=1, waits=True, moves=2, stages=True
)
LENGTH = 80  # actions of a random run


@dataclass
class Explored:
    """`runs`: each from the start to the end. `states`: that differ."""

    runs: int = 0
    states: int = 0
    depth: int = 0
    violation: str = ""
    actions: Sequence[Action] = field(default_factory=list)  # of the run that broke an invariant


def explore(bounds: Bounds, depth: int, progress: Callable[[Explored], None] = lambda explored: None) -> Explored:
    """Every order of every action, up to `depth` of them. States that were seen are not left a second time."""
    explored = Explored()
    seen = set()
    frontier: list[list[Action]] = [[]]
    with loop() as on:
        while frontier and explored.depth <= depth:
            following: list[list[Action]] = []
            for actions in frontier:
                explored.runs += 1
                try:
                    deployment, possible = play(on, bounds, actions)
                except Violation as violation:
                    explored.violation, explored.actions = str(violation), actions
                    return explored
                if deployment.state not in seen:
                    seen.add(deployment.state)
                    following += [[*actions, action] for action in possible]
            explored.states = len(seen)
            progress(explored)
            explored.depth += 1
            frontier = following
    explored.depth -= 1
    return explored


def choices_of(seed: int, length: int = LENGTH) -> Iterator[int]:
    """Numbers that choose among the possible actions."""
    chooser = random.Random(seed)
    for _ in range(length):
        yield chooser.randrange(1 << 30)


def bounds_of(seed: int) -> Bounds:
    return PROFILES[seed % len(PROFILES)]


def simulate(seed: int, length: int = LENGTH, bounds: Bounds | None = None) -> Explored:
    """One random run, shrunk if it breaks an invariant."""
    bounds = bounds or bounds_of(seed)
    choices = list(choices_of(seed, length))
    actions: list[Action] = []
    with loop() as on:
        deployment = Deployment(bounds)

        async def run() -> None:
            await deployment.start()
            try:
                for choice in choices:
                    action = _chosen(list(deployment.actions()), choice)
                    actions.append(action)
                    deployment.act(action)
                    await deployment.settle()
                await deployment.quiesce()
            finally:
                await deployment.stop()

        try:
            on.run_until_complete(run())
        except Violation as violation:
            return Explored(1, violation=str(violation), actions=shrink(bounds, actions))
    return Explored(1)


# How often each kind of action is chosen, of those that are possible. The faults together are as often as a drop.
WEIGHTS = {
    "publish": 3,
    "connect": 4,
    "drop": 1,
    "commit": 5,
    "read": 5,
    "stall": 1,
    "wait": 3,
    "go over": 2,
    "arrive": 2,
    "notice": 2,
}
FAULT = "fault"


def _chosen(possible: Sequence[Action], choice: int) -> Action:
    kinds: dict[str, list[Action]] = {}
    for action in possible:
        kinds.setdefault(action[0] if action[0] in WEIGHTS else FAULT, []).append(action)
    weighted = [kind for kind in kinds for _ in range(WEIGHTS.get(kind, 1))]
    among = kinds[weighted[choice % len(weighted)]]
    return among[choice // len(weighted) % len(among)]


def shrink(bounds: Bounds, actions: Sequence[Action]) -> list[Action]:
    """A part of the actions that still breaks an invariant, and of which none can be left out."""
    with loop() as on:

        def breaks(some: Sequence[Action]) -> bool:
            try:
                play(on, bounds, some, skip=True)
            except Violation:
                return True
            return False

        found = list(actions)
        size = len(found) // 2
        while size:
            start = 0
            while start < len(found):
                fewer = found[:start] + found[start + size :]
                if breaks(fewer):
                    found = fewer
                else:
                    start += size
            size //= 2
    return found
