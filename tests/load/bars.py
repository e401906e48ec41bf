"""What must be reached, by every way of publishing that saturates the server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from tests.load import figures, subjects


class AtMost(NamedTuple):
    """CPU microseconds of the server per delivery, at saturation."""

    cpu_us: float

    def judge(self, found: figures.Figures) -> Iterator[Verdict]:
        for key in found.fanout:
            if key.subject == subjects.FANFARE and key.saturates:
                value = found.cpu_us(key)
                text = f"{key.subject}, {key.way}: {value:.2f} µs of CPU per delivery, at most {self.cpu_us:g}"
                yield Verdict(value <= self.cpu_us, text)


class TimesLess(NamedTuple):
    """Than a rival, in CPU per delivery, in the same run."""

    times: float
    rival: str

    def judge(self, found: figures.Figures) -> Iterator[Verdict]:
        rivals = [found.cpu_us(key) for key in found.fanout if key.subject == self.rival]
        if not rivals:
            return
        for key in found.fanout:
            if key.subject == subjects.FANFARE and key.saturates:
                ratio = min(rivals) / found.cpu_us(key)
                less = f"{ratio:.0f} times less CPU than {self.rival}, at least {self.times:g}"
                yield Verdict(ratio >= self.times, f"{key.subject}, {key.way}: {less}")


class Verdict(NamedTuple):
    reached: bool
    text: str


BARS = (AtMost(cpu_us=3.0), TimesLess(50, subjects.STOCK))


def verdicts(found: figures.Figures) -> list[Verdict]:
    """A bar whose figures were not measured has none."""
    return [verdict for bar in BARS for verdict in bar.judge(found)]
