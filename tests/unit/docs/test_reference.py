"""The reference pages agree with the code: settings, limits, codes, commands, counters."""

from __future__ import annotations

import ast
import dataclasses
import re
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.core.management import get_commands, load_command_class

from fanfare import conf
from fanfare.api import operations
from fanfare.api import refusals as api_refusals
from fanfare.applications import limits, registry
from fanfare.protocol import refusals
from fanfare.runtime import close_codes
from tests.unit.docs import pages

REFERENCE = pages.ROOT / "docs/reference"
SETTINGS = REFERENCE / "settings.md"


# -- settings --------------------------------------------------------------------------------------------------------


def project_variables() -> dict[str, ast.Call]:
    """What myproject/settings.py asks the environment for: the calls by the variable's name."""
    tree = ast.parse((pages.ROOT / "myproject/settings.py").read_text(encoding="utf-8"))
    return {
        node.args[0].value: node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "environment"
        and isinstance(node.args[0], ast.Constant)
        and isinstance(node.args[0].value, str)
        and node.args[0].value != "FANFARE_DATA_DIR"  # of fanfare.conf
    }


def test_every_setting_of_the_package_is_documented() -> None:
    generator = runpy.run_path(str(REFERENCE / "settings.py"))
    for path in generator["MARKS"]:
        text = path.read_text(encoding="utf-8")
        assert text == generator["generated"](path), "run `python docs/reference/settings.py`"
        for setting in conf.settings:
            assert setting.variable in text


def test_every_variable_of_the_project_is_documented_and_no_other() -> None:
    assert {name for name, *_ in pages.table(SETTINGS, "This project")} == set(project_variables())


def test_the_example_has_every_variable_and_no_other() -> None:
    example = (pages.ROOT / ".env.example").read_text(encoding="utf-8")
    names = set(re.findall(r"^#([A-Z][A-Z_]+)=", example, re.MULTILINE))
    assert names == set(project_variables()) | {setting.variable for setting in conf.settings}


def test_project_reads_the_data_folder_as_the_package_does() -> None:
    from myproject import settings

    assert conf.settings.DATA_DIR == settings.DATA_DIR
    assert conf.Settings.DATA_DIR.default == Path("var")


def test_values_of_settings_in_the_pages_are_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those with an ellipsis, a command or a placeholder in capitals have no value of their own."""
    known = {setting.variable: setting for setting in conf.settings}
    checked = 0
    for page in pages.all_pages():
        for name, value in re.findall(r"\b(FANFARE_\w+)=([^\s`'\"\\]+)", page.read_text(encoding="utf-8")):
            if name in known and not re.search(r"…|\*|^\$\(", value) and not value.isupper():
                monkeypatch.setenv(name, value.rstrip(",.;)"))
                known[name].read({})
                monkeypatch.delenv(name)
                checked += 1
    assert checked > 40


# -- limits ----------------------------------------------------------------------------------------------------------


def test_every_limit_is_documented_with_its_default_and_its_bounds() -> None:
    documented = {name: rest[:3] for name, *rest in pages.table(REFERENCE / "limits.md", "Of an application")}
    expected = {}
    for field in dataclasses.fields(registry.Limits):
        name, default, bounds = field.name, field.default, limits.BOUNDS[field.name]
        expected[name] = ["none" if default is None else str(default), str(bounds.least), str(bounds.most)]
    assert documented == expected


def test_every_number_of_a_channel_rule_is_documented_with_its_default_and_its_bounds() -> None:
    documented = {name: rest[:3] for name, *rest in pages.table(REFERENCE / "limits.md", "Of a channel rule")}
    assert documented == {
        name: [str(limits.RULE_DEFAULTS[name]), str(bounds.least), str(bounds.most)]
        for name, bounds in limits.RULE_BOUNDS.items()
    }


# -- codes -----------------------------------------------------------------------------------------------------------


def test_every_code_is_documented_under_its_name() -> None:
    page = REFERENCE / "codes.md"
    rows = pages.table(page, "Close codes") + pages.table(page, "Errors that keep the connection open")
    documented = {name: int(code) for code, name, *_ in rows if name}
    constants = {
        name: value
        for name, value in {**vars(refusals), **vars(close_codes)}.items()
        if name.isupper() and isinstance(value, int) and 1000 <= value < 5000
    }
    assert documented == constants


# -- the HTTP API ----------------------------------------------------------------------------------------------------


def test_every_call_of_the_http_api_is_documented() -> None:
    text = (REFERENCE / "http-api.md").read_text(encoding="utf-8")
    for route in operations.ROUTES:
        path = route.path.replace("{app_id}", "{id}").replace("{channel}", "{name}")
        assert path in text, path


def test_every_status_of_a_refusal_is_documented() -> None:
    documented = {int(status) for status, _ in pages.table(REFERENCE / "http-api.md", "Refusals")}
    raised = {
        error.status for error in vars(api_refusals).values() if isinstance(error, type) and hasattr(error, "status")
    }
    assert raised - {500} == documented


# -- commands --------------------------------------------------------------------------------------------------------


def test_every_command_of_ours_is_documented() -> None:
    ours = {name for name, app in get_commands().items() if str(app).startswith(("fanfare", "myproject"))}
    headings = set(re.findall(r"^### (\w+)$", (REFERENCE / "commands.md").read_text(encoding="utf-8"), re.MULTILINE))
    assert headings == ours | {"check"}


def test_every_flag_of_createapplication_is_documented() -> None:
    command = load_command_class("fanfare", "createapplication")
    common = {"--help", "--version", "--verbosity", "--settings", "--pythonpath", "--traceback", "--no-color"}
    common |= {"--force-color", "--skip-checks"}
    parser = command.create_parser("manage.py", "createapplication")
    flags = {option for action in parser._actions for option in action.option_strings if option.startswith("--")}
    documented = {row[0].split()[0] for row in pages.table(REFERENCE / "commands.md", "createapplication")}
    assert documented == flags - common


# -- counters --------------------------------------------------------------------------------------------------------


def counters() -> Iterator[tuple[str, Path]]:
    """The counter names in the code; `*` stands for a computed part."""
    for path in sorted((pages.ROOT / "apps").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = None
            if isinstance(node, ast.Call) and node.args and _is_count(node.func):
                name = _text(node.args[0])
            elif isinstance(node, ast.Subscript) and getattr(node.value, "attr", "") == "counters":
                name = _text(node.slice)
            if name is not None:
                yield name, path


def _is_count(function: ast.expr) -> bool:
    if isinstance(function, ast.Attribute):  # hub.count("…"), effects.Count("…"), not text.count("&")
        owner = getattr(function.value, "attr", getattr(function.value, "id", ""))
        return function.attr == "Count" or (function.attr == "count" and owner.endswith("hub"))
    return isinstance(function, ast.Name) and function.id == "_count"


def _text(node: ast.expr) -> str | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "*" for part in node.values)
    return None


def test_every_counter_is_documented() -> None:
    text = (REFERENCE / "statistics.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `([\w.*]+)` \|", text, re.MULTILINE))
    families = {name.removesuffix("*") for name in documented if name.endswith(".*")}
    found = dict(counters())
    assert len(found) > 20
    for name, path in found.items():
        known = name in documented or any(family and name.startswith(family) for family in families)
        assert known, f"{name} of {pages.name(path)} is not in statistics.md"


def test_every_setting_of_a_project_names_a_test_that_exists() -> None:
    for name, _, proof in pages.table(pages.ROOT / "docs/reference/host-settings.md", "Settings and middleware"):
        path, _, test = proof.strip("`").partition("::")
        text = (pages.ROOT / "tests" / path).read_text(encoding="utf-8")
        assert not test or f"def {test}(" in text, (name, proof)
