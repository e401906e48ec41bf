"""Answers the questions. Fanfare runs this job in one worker, and in another one when that worker stops or is killed.

The new worker finds the unfinished answers in the database and opens each stream again, with the text that it has.
"""

from __future__ import annotations

import asyncio
import logging

import fanfare
from chat import fake_model
from chat.models import Turn

logger = logging.getLogger(__name__)

LOOK_S = 0.2  # between two searches for new questions


@fanfare.background
async def answer_questions() -> None:
    answering: dict[int, asyncio.Task[None]] = {}
    async with asyncio.TaskGroup() as tasks:
        while True:
            answering = {number: task for number, task in answering.items() if not task.done()}
            async for turn in Turn.objects.filter(is_finished=False).exclude(pk__in=answering):
                answering[turn.pk] = tasks.create_task(_answer(turn))
            await asyncio.sleep(LOOK_S)


async def _answer(turn: Turn) -> None:
    try:
        async with fanfare.stream(turn.channel, "answer", id=str(turn.pk)) as stream:
            async for token in fake_model.tokens(turn.question, skip=stream.seq):
                await stream.append(token)
        turn.answer = stream.text
    except fanfare.StreamEnded as ended:  # a reader stopped it, or a killed worker has ended it
        turn.answer = ended.text
    except fanfare.FanfareError as error:  # the next search finds the question again
        logger.warning("The answer %d is interrupted: %s", turn.pk, error)
        return
    turn.is_finished = True
    await turn.asave(update_fields=["answer", "is_finished"])
