"""Every clause of the protocol has a test that shows it, and the test exists."""

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

# The parts that the protocol's notes have.
PARTS = [f"1.{n}" for n in range(1, 14)] + [f"1.14.{n}" for n in range(1, 7)] + [f"1.{n}" for n in range(15, 20)]

TAKEN = re.compile(r"options,|… as above")  # from the server, or from the snippet before

# What makes a client of the vendor's talk to a server of one's own, and to no other.
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
    """The tests of a module as pytest finds them: functions, methods, and cases that hypothesis makes."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            names.add(node.name)
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Attribute) and node.value.attr == "TestCase":
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return frozenset(names)


def test_every_part_of_the_protocol_has_clauses() -> None:
    assert list(dict.fromkeys(clause.part for clause in clauses())) == PARTS


def test_every_clause_stands_once_and_has_a_test() -> None:
    found = list(clauses())
    assert len(found) > 200
    assert [clause for clause in found if not clause.tests] == []
    assert len({(clause.part, clause.text) for clause in found}) == len(found)


@pytest.mark.parametrize("name", sorted({name for clause in clauses() for name in clause.tests}))
def test_the_test_of_a_clause_exists(name: str) -> None:
    path, _, test = name.partition("::")
    assert (TESTS / path).is_file(), f"there is no tests/{path}"
    assert test in names_of(TESTS / path), f"tests/{path} has no {test}"


def test_every_snippet_for_pusher_js_has_the_options_that_self_hosting_needs() -> None:
    """All but those that take them from the server, or from the snippet before."""
    pasted = [(pages.name(page), block.text) for page in pages.all_pages() for block in pages.blocks(page)]
    pasted += [(path.name, shown(path)) for path in (pages.ROOT / "myproject/templates/snippets").glob("*.html")]
    complete = 0
    for place, text in pasted:
        if re.search(r"new (Pusher\((?!\{)|Echo\()", text) and not TAKEN.search(text):
            assert [option for option in OPTIONS if option not in text] == [], place
            complete += 1
    assert complete > 5


def shown(path: Path) -> str:
    """The text of a snippet on a page, without its markup."""
    return re.sub(r"<[^>]+>", "", path.read_text(encoding="utf-8"))
