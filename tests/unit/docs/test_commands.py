"""Each command of the pages has a row in the table of docs/reference/proof.md: a test that runs it, or the reason why
none does. The options of the commands that take minutes are parsed.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys

from tests.unit.docs import pages

# Lines of an indented block that are no commands: settings, HTTP, and the first words of figures and of synopses.
OTHER = re.compile(r"[A-Z_]+=(?!\$\()\S*(?:, \S+)*|FANFARE = .*|(?:GET|POST) /.*|[A-Z][\w-]+: .*")
FIGURES = {
    "CONTRIBUTING.md": r"[\w/. ,]+(?:/|\.py)",  # the layout of the repository
    "docs/explanation/how-an-event-travels.md": r"publisher: .*|[│▼]|engine\.append|the log|hub",
    "docs/explanation/performance.md": r"publication ÷ .*",
    "docs/reference/commands.md": r"(?:\w+ )*(?:[A-Z…]+ )*\[?.*[\]…]|encryptsecrets",  # the options of manage.py
    "docs/reference/http-api.md": r"METHOD|/apps/.*|auth_key=.*",
}
MEASUREMENT = re.compile(r"(?:\.venv/bin/)?python -m (tests\.\S+)(.*)")

# Parses each command's options with the program's own parser, and does not run the program.
PARSE = """
import argparse, json, runpy, sys

class Parsed(Exception): pass

parse_args = argparse.ArgumentParser.parse_args

def parse(parser, *values):
    parse_args(parser, *values)
    raise Parsed

argparse.ArgumentParser.parse_args = parse
faults = []
for module, options in json.load(sys.stdin):
    sys.argv = [module, *options]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        faults.append(f"{module} reads no options")
    except Parsed:
        pass
    except SystemExit:
        faults.append(f"{module} {options}")
print(json.dumps(faults))
"""


def commands() -> list[pages.Command]:
    return [
        command
        for page in pages.all_pages()
        for command in pages.shell_lines(page)
        if not OTHER.fullmatch(command.text) and not re.fullmatch(FIGURES.get(command.page, "(?!)"), command.text)
    ]


def test_every_command_of_the_pages_is_run_by_a_test_or_has_a_reason() -> None:
    rows = pages.command_rows()
    found = commands()
    assert len(found) > 150
    used = set()
    missing = []
    for command in found:
        row = next((row for row in rows if row.covers(command)), None)
        if row is None:
            missing.append(f"{command.page}:{command.line}: {command.text}")
        used.add(row)
    assert missing == []
    assert [row for row in rows if row not in used] == []
    for row in rows:
        for test in re.findall(r"tests/[\w/]+\.py", row.proof):
            assert (pages.ROOT / test).exists(), test


def test_options_of_the_measurements_are_those_of_the_programs() -> None:
    inline = [
        match
        for page in pages.all_pages()
        if page.name != "CHANGELOG.md"
        for match in re.findall(r"`((?:\.venv/bin/)?python -m tests\.[^`…*]*)`", page.read_text("utf-8"))
    ]
    found = {MEASUREMENT.match(text.replace("\n", " ")) for text in {*inline, *(one.text for one in commands())}}
    calls = sorted((match[1], shlex.split(match[2].partition(" …")[0])) for match in found if match)
    assert len(calls) > 40
    done = subprocess.run(
        [sys.executable, "-c", PARSE],
        cwd=pages.ROOT,
        input=json.dumps(calls),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [], done.stderr
