"""Parsers of text from outside raise only what they document. `python -m tests.fuzz parsers` takes longer."""

from __future__ import annotations

import os
import random

import pytest

from tests.fuzz import parsers, readers

SECONDS = float(os.environ.get("FUZZ_SECONDS", "0.2"))  # for each


@pytest.mark.parametrize("name", parsers.TARGETS)
def test_mutated_text_is_parsed_or_refused(name: str) -> None:
    assert parsers.run(parsers.TARGETS[name], SECONDS, random.Random(1)) > 0


def test_each_function_that_reads_text_has_a_target_or_a_reason() -> None:
    unreached = readers.readers() - readers.reached(parsers.TARGETS)
    known = {one for one in unreached if {one, one.partition(":")[0]} & set(readers.ELSEWHERE)}
    assert sorted(unreached - known) == [], (
        "add a target to tests/fuzz/parsers.py, or a reason to tests/fuzz/readers.py"
    )
    used = known | {one.partition(":")[0] for one in known}
    assert set(readers.ELSEWHERE) <= used, "a reason is no longer needed"


def test_cached_answer_hides_no_function_that_reads_text() -> None:
    target = parsers.TARGETS["handshake"]
    for seed in target.seeds:
        target.parse(seed)
    assert "protocol/handshake:_parameters" in readers.reached({"handshake": target})


async def test_mutated_answer_of_a_receiver_has_an_outcome_that_can_be_stored() -> None:
    assert await parsers.webhook_answers(5 * SECONDS, random.Random(1)) > 0
