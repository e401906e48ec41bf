"""The names in the documentation exist: functions and their arguments, settings, commands, checks, metrics, modules."""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.util
import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from django.core.management import get_commands, load_command_class

from fanfare import conf
from tests.unit.docs import pages
from tests.unit.docs.test_reference import project_variables

PAGES = [page for page in pages.all_pages() if page.name != "CHANGELOG.md"]

# What `createapplication` prints, as variables of a shell.
PRINTED = {"FANFARE_APP_ID", "FANFARE_APP_KEY", "FANFARE_APP_SECRET"}


class Uses(ast.NodeVisitor):
    """Resolves what a block imports from `fanfare`. `faults`: names that do not exist, and calls that do not bind."""

    def __init__(self) -> None:
        self.names: dict[str, Any] = {}
        self.faults: dict[str, None] = {}

    def visit_Import(self, node: ast.Import) -> None:
        for one in node.names:
            if one.name.partition(".")[0] == "fanfare":
                module = importlib.import_module(one.name)
                self.names[one.asname or "fanfare"] = module if one.asname else importlib.import_module("fanfare")

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if node.module is None or node.module.partition(".")[0] != "fanfare":
            return
        module = importlib.import_module(node.module)
        for one in node.names:
            if hasattr(module, one.name):
                self.names[one.asname or one.name] = getattr(module, one.name)
            elif importlib.util.find_spec(f"{node.module}.{one.name}") is not None:
                self.names[one.asname or one.name] = importlib.import_module(f"{node.module}.{one.name}")
            else:
                self.faults[f"{node.module} has no {one.name}"] = None

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self.names.pop(node.name, None)
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.value(node)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        function = self.value(node.func)
        if callable(function) and not any(isinstance(one, ast.Starred) for one in node.args):
            named = {one.arg: None for one in node.keywords if one.arg is not None}
            try:
                inspect.signature(function).bind_partial(*node.args, **named)
            except TypeError as error:
                self.faults[f"{ast.unparse(node)}: {error}"] = None
        self.generic_visit(node)

    def value(self, node: ast.expr) -> Any:
        """What the expression stands for; None if it is not a name of `fanfare`."""
        if isinstance(node, ast.Name):
            return self.names.get(node.id)
        if isinstance(node, ast.Attribute):
            owner = self.value(node.value)
            if inspect.ismodule(owner):
                if hasattr(owner, node.attr):
                    return getattr(owner, node.attr)
                self.faults[f"{owner.__name__} has no {node.attr}"] = None
        return None


def test_python_uses_existing_names_and_arguments() -> None:
    """The blocks of a page are one program: a later one may use the imports of an earlier one."""
    faults = []
    for page in PAGES:
        uses = Uses()
        for block in pages.blocks(page):
            if block.language == "python":
                uses.visit(ast.parse(block.text))
        faults += [f"{pages.name(page)}: {fault}" for fault in uses.faults]
    assert faults == []


def test_wrong_name_and_wrong_argument_are_found() -> None:
    uses = Uses()
    uses.visit(ast.parse("from fanfare import publish, presence, nothing"))
    uses.visit(ast.parse("publish('a', 'b', {}, no=1)"))
    uses.visit(ast.parse("presence.none()"))
    assert [fault.partition(":")[0] for fault in uses.faults] == [
        "fanfare has no nothing",
        "publish('a', 'b', {}, no=1)",
        "fanfare.integration.presence has no none",
    ]


def test_named_settings_exist() -> None:
    known = {setting.variable for setting in conf.settings} | set(project_variables()) | PRINTED
    known |= {f"{name}_FILE" for name in known} | {"FANFARE_DATA_DIR", "FANFARE_ENV_FILE"}
    named = {name for page in PAGES for name in re.findall(r"\bFANFARE_[A-Z_]*[A-Z]\b(?!…)", page.read_text("utf-8"))}
    assert named - known == set()


def shown_commands(page: Path) -> Iterator[list[str]]:
    """The arguments of each `manage.py` on the page, in blocks and in the text."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for line in re.findall(r"manage\.py ([a-z_]+(?: [^`\n|]*)?)", text):
        shown = re.split(r"\s(?:#|&&|>|\()|\s{3,}", line)[0]
        try:
            yield shlex.split(shown)
        except ValueError:  # an apostrophe of the text
            yield shown.split()[:1]


def options(parser: argparse.ArgumentParser, arguments: list[str]) -> set[str]:
    """The options of a command, and of the subcommands among its arguments."""
    known = set(parser._option_string_actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for one in arguments:
                if one in action.choices:
                    known |= options(action.choices[one], arguments)
    return known


def test_shown_commands_exist_with_their_options() -> None:
    homes = {name: str(home) for name, home in get_commands().items()}
    wrong, seen = [], 0
    for page in PAGES:
        for name, *arguments in shown_commands(page):
            seen += 1
            used = {one.partition("=")[0] for one in arguments if one.startswith("--")}
            if name not in homes:
                wrong.append(f"{pages.name(page)}: {name}")
            elif homes[name].startswith(("fanfare", "myproject")):
                parser = load_command_class(homes[name], name).create_parser("manage.py", name)
                wrong += [f"{pages.name(page)}: {name} {one}" for one in used - options(parser, arguments)]
    assert seen > 30
    assert wrong == []


def test_named_system_checks_exist() -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in (pages.ROOT / "apps").rglob("*.py"))
    named = {name for page in PAGES for name in re.findall(r"`(fanfare\.[EW]\d+)`", page.read_text("utf-8"))}
    assert named
    assert {name for name in named if name not in source} == set()


def test_named_modules_of_the_tests_exist() -> None:
    named = {name for page in PAGES for name in re.findall(r"python -m (tests[\w.]*\w)", page.read_text("utf-8"))}
    assert len(named) > 10
    assert {name for name in named if importlib.util.find_spec(name) is None} == set()


def test_shown_options_of_the_tests_commands_exist() -> None:
    """As words of the command's package, because starting each of them takes seconds."""
    wrong, seen = [], 0
    for page in PAGES:
        text = page.read_text("utf-8").replace("\\\n", " ")
        for module, arguments in re.findall(r"python -m (tests[\w.]*\w)((?: +[^\s`|#]+)*)", text):
            found = importlib.util.find_spec(module)
            assert found is not None
            assert found.origin is not None
            files = Path(found.origin).parent.glob("*.py") if found.submodule_search_locations else [Path(found.origin)]
            source = "".join(file.read_text("utf-8") for file in files)
            used = re.findall(r"(?<=\s)--([a-z][\w-]*)", arguments)
            seen += len(used)
            wrong += [f"{pages.name(page)}: {module} {one}" for one in used if not re.search(f'"(--)?{one}"', source)]
    assert seen > 20
    assert wrong == []
