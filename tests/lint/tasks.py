"""`make lint`: tasks start through fanfare.runtime.

asyncio forgets a task that nothing refers to, and reports its failure only when it is collected as garbage. So
`create_task` and `ensure_future` are called in `fanfare/runtime` alone, which keeps a reference and logs, counts and
restarts. A task group (`async with asyncio.TaskGroup() as group`) does that too.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CHECKED = ("apps", "myproject")
ALLOWED = "apps/fanfare/runtime/"


def bare_tasks(tree: ast.AST) -> Iterator[int]:
    """Line numbers of the calls that start a task without an owner."""
    groups = set(_task_groups(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in {"create_task", "ensure_future"}:
            yield node.lineno
        elif isinstance(node, ast.ImportFrom) and node.module == "asyncio":
            yield from (node.lineno for name in node.names if name.name in {"create_task", "ensure_future"})
        elif isinstance(node, ast.Attribute) and node.attr in {"create_task", "ensure_future"}:
            yield from () if isinstance(node.value, ast.Name) and node.value.id in groups else (node.lineno,)


def _task_groups(tree: ast.AST) -> Iterator[str]:
    """Names that `async with asyncio.TaskGroup() as NAME` binds."""
    for node in ast.walk(tree):
        if isinstance(node, ast.AsyncWith):
            for item in node.items:
                if isinstance(item.optional_vars, ast.Name) and ast.unparse(item.context_expr).endswith("TaskGroup()"):
                    yield item.optional_vars.id


def findings(root: Path) -> Iterator[tuple[str, int]]:
    """Path below `root` and line."""
    for folder in CHECKED:
        for path in sorted((root / folder).rglob("*.py")):
            name = path.relative_to(root).as_posix()
            if not name.startswith(ALLOWED):
                yield from ((name, line) for line in bare_tasks(ast.parse(path.read_text(encoding="utf-8"))))


def main() -> int:
    found = list(findings(ROOT))
    for name, line in found:
        print(f"{name}:{line}: start the task with fanfare.runtime.supervisor.Supervisor (spawn or run)")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
