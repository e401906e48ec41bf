"""Parsers of text from outside raise only what they document. `python -m tests.fuzz parsers` takes longer."""

from __future__ import annotations

import os
import random

import pytest

from tests.fuzz import parsers

SECONDS = float(os.environ.get("FUZZ_SECONDS", "0.2"))  # for each


@pytest.mark.parametrize("name", parsers.TARGETS)
def test_mutated_text_is_parsed_or_refused(name: str) -> None:
    assert parsers.run(parsers.TARGETS[name], SECONDS, random.Random(1)) > 0


async def test_mutated_answer_of_a_receiver_has_an_outcome_that_can_be_stored() -> None:
    assert await parsers.webhook_answers(5 * SECONDS, random.Random(1)) > 0
