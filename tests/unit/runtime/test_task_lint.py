"""The check of `make lint` finds each way to start a task without an owner."""

from __future__ import annotations

import ast

import pytest

from tests.lint import tasks


@pytest.mark.parametrize(
    "code",
    [
        "asyncio.create_task(work())",
        "asyncio.ensure_future(work())",
        "loop.create_task(work())",
        "asyncio.get_running_loop().create_task(work())",
        "start = asyncio.create_task",
        "from asyncio import create_task",
    ],
)
def test_bare_task_is_found(code: str) -> None:
    assert list(tasks.bare_tasks(ast.parse(code))) == [1]


def test_task_group_is_allowed() -> None:
    code = "async def f():\n    async with asyncio.TaskGroup() as group:\n        group.create_task(work())\n"
    assert list(tasks.bare_tasks(ast.parse(code))) == []
