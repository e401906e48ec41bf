"""Every clause of the protocol names existing tests."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.unit.docs import pages

PAGE = pages.ROOT / "docs/reference/protocol-clauses.md"
TESTS = pages.ROOT / "tests"

# The parts of the protocol description.
PARTS = [f"1.{n}" for n in range(1, 14)] + [f"1.14.{n}" for n in range(1, 7)] + [f"1.{n}" for n in range(15, 20)]

TAKEN = re.compile(r"options,|… as above")  # from the server, or from the snippet before

# The options with which a vendor client connects to a self-hosted server and to no other.
OPTIONS = ("cluster", "wsHost", "forceTLS", "enabledTransports")


class Clause(NamedTuple):
    part: str
    text: str
    tests: list[str]  # path::name


def clauses() -> Iterator[Clause]:
    part = ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            part = line.split()[1]
        elif line.startswith("| ") and not line.startswith("| Clause"):
            text, shown = line.strip("| ").rsplit(" | ", 1)
            yield Clause(part, text, re.findall(r"`([^`]+)`", shown))


@functools.cache
def names_of(path: Path) -> frozenset[str]:
    """The names of a module's tests: functions, methods, and hypothesis state machines."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            names.add(node.name)
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Attribute) and node.value.attr == "TestCase":
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return frozenset(names)


def test_every_part_of_the_protocol_has_clauses() -> None:
    assert list(dict.fromkeys(clause.part for clause in clauses())) == PARTS


def test_clauses_are_unique_and_have_tests() -> None:
    found = list(clauses())
    assert len(found) > 200
    assert [clause for clause in found if not clause.tests] == []
    assert len({(clause.part, clause.text) for clause in found}) == len(found)


@pytest.mark.parametrize("name", sorted({name for clause in clauses() for name in clause.tests}))
def test_test_of_a_clause_exists(name: str) -> None:
    path, _, test = name.partition("::")
    assert (TESTS / path).is_file(), f"there is no tests/{path}"
    assert test in names_of(TESTS / path), f"tests/{path} has no {test}"


def test_pusher_js_snippets_have_the_options_for_self_hosting() -> None:
    """Except snippets that take the options from the server or the previous snippet."""
    pasted = [
        (pages.name(page), block.text)
        for page in pages.all_pages()
        for block in pages.blocks(page)
        if block.language not in ("java", "kotlin", "php")
    ]
    pasted += [(path.name, shown(path)) for path in (pages.ROOT / "myproject/templates/snippets").glob("*.html")]
    complete = 0
    for place, text in pasted:
        if re.search(r"new (Pusher\((?!\{)|Echo\()", text) and not TAKEN.search(text):
            assert [option for option in OPTIONS if option not in text] == [], place
            complete += 1
    assert complete > 5


def shown(path: Path) -> str:
    """The text of a snippet template without markup."""
    return re.sub(r"<[^>]+>", "", path.read_text(encoding="utf-8"))
