"""@background and @periodic: which functions they take, and what their errors say."""

from __future__ import annotations

from typing import Any

import pytest

from fanfare.jobs import declarations, errors


async def forever() -> None: ...


def plain() -> None: ...


async def with_argument(channel: str, size: int = 1) -> None: ...


@pytest.mark.parametrize(
    ("function", "once_per", "seconds", "message"),
    [
        (plain, "worker", None, "async def"),
        (forever, "machine", None, "'machine'"),
        (forever, "worker", 0, "not 0"),
        (forever, "worker", float("nan"), "not nan"),
        (forever, "worker", float("inf"), "not inf"),
        (forever, "worker", "60", "not '60'"),
        (with_argument, "worker", 60, "give channel a default"),
    ],
)
def test_wrong_declaration_is_refused_with_its_remedy(function: Any, once_per: Any, seconds: Any, message: str) -> None:
    with pytest.raises(errors.InvalidJob, match=message):
        declarations.Jobs().add(function, once_per, seconds)


def test_periodic_without_its_period_is_refused_with_an_example() -> None:
    with pytest.raises(errors.InvalidJob, match=r"@periodic\(seconds=60\)"):
        declarations.periodic(forever)
    with pytest.raises(errors.InvalidJob, match=r"@periodic\(seconds=60\)"):
        declarations.periodic()


def test_decorators_register_the_function_and_return_it_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = declarations.Jobs()
    monkeypatch.setattr(declarations, "declared", mine)
    assert declarations.background(forever) is forever
    assert declarations.periodic(seconds=5, once_per="worker")(plain) is plain
    assert declarations.background(once_per="worker")(forever) is forever  # its module was loaded again
    assert [(job.function, job.once_per, job.seconds) for job in mine.all()] == [
        (forever, "worker", None),
        (plain, "worker", 5),
    ]
