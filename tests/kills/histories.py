"""The raw history of a run: each call of the publisher and each line of each client, as JSON lines in a file.

A file can be judged again, by a later checker too: `python -m tests.kills --judge FILE`.
"""

from __future__ import annotations

import collections
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tests.kills import transcripts
from tests.kills.transcripts import Line, Lost, Received, Subscribed


class Call(NamedTuple):
    """One attempt to publish `first` to `last` on every channel. `outcome`: `acknowledged`, or why it was repeated."""

    first: int
    last: int
    began: float  # monotonic seconds, as in a transcript
    ended: float
    outcome: str


@dataclass
class Client:
    """What one client subscribed to and received. `kind`: as in `followers`."""

    kind: str
    channel: str
    lines: list[Line]
    resets: int = 0
    moves: int = 0


@dataclass
class History:
    """`reasons`: by channel, see `rounds.Round`."""

    title: str
    reasons: dict[str, tuple[str, ...]]
    must_lose: bool = True
    calls: list[Call] = field(default_factory=list)
    clients: list[Client] = field(default_factory=list)

    @property
    def acknowledged(self) -> int:
        """The number of the last acknowledged event: there is one call at a time, and it is repeated."""
        return max((call.last for call in self.calls if call.outcome == "acknowledged"), default=0)

    def examine(self, client: Client) -> transcripts.Findings:
        """Order, gaps, duplicates and ghosts of one client."""
        found = transcripts.examine(client.lines, self.acknowledged)
        found.ghosts = ghosts(client.lines, self.calls)
        return found

    # -- the file ------------------------------------------------------------------------------------------------------

    def write(self, path: Path) -> None:
        with path.open("w", encoding="utf-8") as file:
            for record in self._records():
                file.write(json.dumps(record, separators=(",", ":")) + "\n")

    def _records(self) -> Iterator[dict[str, Any]]:
        yield {"title": self.title, "reasons": self.reasons, "must_lose": self.must_lose}
        for call in self.calls:
            yield {"call": call}
        for number, client in enumerate(self.clients):
            yield {
                "client": number,
                "kind": client.kind,
                "channel": client.channel,
                "resets": client.resets,
                "moves": client.moves,
            }
            for line in client.lines:
                yield {"of": number, type(line).__name__.lower(): line}


LINES = {"received": Received, "subscribed": Subscribed, "lost": Lost}


def read(path: Path) -> History:
    """Raises ValueError for a file of another form."""
    with path.open(encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    head = records[0]
    history = History(
        head["title"], {name: tuple(reasons) for name, reasons in head["reasons"].items()}, head["must_lose"]
    )
    for record in records[1:]:
        if "call" in record:
            history.calls.append(Call(*record["call"]))
        elif "client" in record:
            history.clients.append(Client(record["kind"], record["channel"], [], record["resets"], record["moves"]))
        else:
            [name] = record.keys() & LINES.keys()
            history.clients[record["of"]].lines.append(LINES[name](*record[name]))
    return history


def ghosts(lines: Sequence[Line], calls: Sequence[Call]) -> int:
    """Receipts of events that were not published at that time: no call for the number had begun."""
    began: dict[int, float] = {}
    for call in calls:
        for number in range(call.first, call.last + 1):
            began.setdefault(number, call.began)
    return sum(
        isinstance(line, Received) and (line.number not in began or line.at < began[line.number]) for line in lines
    )


def repeated(calls: Sequence[Call]) -> int:
    """How many events were in calls that were made again."""
    numbers = collections.Counter(number for call in calls for number in range(call.first, call.last + 1))
    return sum(count > 1 for count in numbers.values())


def outcomes(calls: Sequence[Call]) -> collections.Counter[str]:
    """Why calls were repeated."""
    return collections.Counter(call.outcome for call in calls if call.outcome != "acknowledged")
