"""Check the language of docstrings, comments, messages, test names, documentation and templates.

    python -m tests.lint.words [--strict] [PATH ...]

Prints FILE:LINE, the words found and what to write instead. With `--strict` it exits with 1 if there is any finding.
Code in backticks, code blocks and URLs are not checked.
"""

from __future__ import annotations

import argparse
import ast
import collections
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
AREAS = ("apps", "myproject", "tests", "docs", "deploy", "README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")
EXCLUDED = ("vendor/", "/LICENSE", "tests/lint/", "tests/unit/lint/", "package-lock.json")
STRING_AREAS = ("apps/", "myproject/")  # where string literals are messages that a user reads


class Rule(NamedTuple):
    pattern: re.Pattern[str]
    advice: str


def _rule(pattern: str, advice: str, flags: int = re.IGNORECASE) -> Rule:
    return Rule(re.compile(pattern, flags), advice)


NAME_IT = "name the thing: the client, the worker, the subscriber, the publisher"

TEXT_RULES = (
    _rule(r"\b(?:nobody|no one)\b", f"{NAME_IT}; for example “no client …”"),
    _rule(r"\b(?:somebody|someone|anybody)\b", f"{NAME_IT}; for example “a client …”, “another process …”"),
    _rule(r"\b(?:everybody|everyone)\b", f"{NAME_IT}; for example “all subscribers”"),
    _rule(r"\bwho(?:m)?ever\b", f"{NAME_IT}; for example “the process that …”, “a client that …”"),
    _rule(r"(?:^|[.;:!]\s+)Who\b(?![^.!?]*\?)", f"{NAME_IT} as the subject; for example “A client that …”", 0),
    _rule(r"\b(?:to|for|by|of|with|than|from|and) who\b", f"{NAME_IT}; for example “to the client that …”"),
    _rule(
        r"\b(?:is|are|was|were|be|been|being) told\b(?! apart)", "say what is sent: “the client gets close code 4200”"
    ),
    _rule(r"\blook(?:s|ed)? after\b", "name the action: “restarts”, “closes”, “renews”"),
    _rule(r"\bon (?:its|their|the) way\b", "say where it is: “in the send queue”, “not yet written”"),
    _rule(r"\bwhat is left\b", "name it: “the remaining entries”, “the processes that still run”"),
)

TEST_NAME_RULES = (
    _rule(r"^test_who_|_(?:to|for|by|of|with|from|and)_who_|_whoever_", "name the client, the worker, the user"),
    _rule(r"(?:^|_)(?:nobody|somebody|someone|everybody|everyone|anybody|anyone)(?:_|$)", NAME_IT),
    _rule(r"_(?:is|are|was|were)_told(?:_|$)", "say what is sent: test_…_gets_4200"),
    _rule(r"^test_what_", "name the behaviour: test_event_after_unsubscribe_is_dropped"),
)


class Finding(NamedTuple):
    path: str
    line: int
    found: str
    advice: str


class Text(NamedTuple):
    line: int
    text: str
    rules: tuple[Rule, ...] = TEXT_RULES


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.lint.words", description=__doc__.partition("\n")[0])
    parser.add_argument("--strict", action="store_true", help="exit with 1 if there is a finding")
    parser.add_argument("--count", action="store_true", help="print the number of findings by folder only")
    parser.add_argument("paths", nargs="*", default=AREAS, help="files or folders; all areas by default")
    options = parser.parse_args()
    findings = [finding for path in _files(options.paths) for finding in check(path, (ROOT / path).read_text())]
    if not options.count:
        for finding in findings:
            print(f"{finding.path}:{finding.line}: “{finding.found}”: {finding.advice}")
    counts = collections.Counter("/".join(finding.path.split("/")[:3]) for finding in findings)
    if options.count:
        for area, count in sorted(counts.items()):
            print(f"{count:6} {area}")
    print(f"words: {len(findings)} findings")
    return 1 if findings and options.strict else 0


def check(path: str, content: str) -> list[Finding]:
    """The findings in one file. `path`: relative to the repository; it selects the parser and the rules."""
    extract = next(extract for suffixes, extract in EXTRACTORS if path.endswith(suffixes))
    return [
        Finding(path, line + text[: match.start()].count("\n"), match.group().strip(" .;:!"), rule.advice)
        for line, text, rules in extract(content, path)
        for rule in rules
        for match in rule.pattern.finditer(_prose(text) if rules is TEXT_RULES else text)
    ]


def _files(paths: list[str]) -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *paths],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    return [
        path
        for path in listed
        if path.endswith(SUFFIXES) and not any(part in path for part in EXCLUDED) and (ROOT / path).is_file()
    ]


def _prose(text: str) -> str:
    """`text` with code, URLs and emphasis blanked out; the length and the line breaks stay."""
    return re.sub(r"``?[^`\n]+``?|https?://\S+", lambda code: " " * len(code.group()), text)


# -- extractors --------------------------------------------------------------------------------------------------------


def _python(content: str, path: str) -> Iterator[Text]:
    tree = ast.parse(content)
    docstrings: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                docstrings.add(id(first.value))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            yield Text(node.lineno, node.name, TEST_NAME_RULES)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            is_message = path.startswith(STRING_AREAS) and node.value.count(" ") >= 2
            if id(node) in docstrings or is_message:
                yield Text(node.lineno, node.value)
    yield from _comments(content)


def _comments(content: str) -> Iterator[Text]:
    """Adjacent comment lines are one text, so that a sentence may span them."""
    block: list[str] = []
    start = 0
    for token in tokenize.generate_tokens(io.StringIO(content).readline):
        if token.type != tokenize.COMMENT:
            continue
        row = token.start[0]
        if block and row != start + len(block):
            yield Text(start, "\n".join(block))
            block = []
        if not block:
            start = row
        block.append(token.string.lstrip("#: "))
    if block:
        yield Text(start, "\n".join(block))


def _markdown(content: str, _path: str) -> Iterator[Text]:
    yield Text(1, re.sub(r"^(```|~~~).*?^\1", _blank, content, flags=re.MULTILINE | re.DOTALL))


def _template(content: str, _path: str) -> Iterator[Text]:
    yield Text(1, re.sub(r"<(script|style)\b.*?</\1>|<[^>]*>|{%.*?%}|{{.*?}}", _blank, content, flags=re.DOTALL))


def _javascript(content: str, _path: str) -> Iterator[Text]:
    for match in re.finditer(r"/\*.*?\*/|(?<!:)//[^\n]*", content, flags=re.DOTALL):
        yield Text(content[: match.start()].count("\n") + 1, re.sub(r"^[ \t]*(//|/?\*+/?)[ \t]?", "", match.group()))


def _hash_comments(content: str, _path: str) -> Iterator[Text]:
    for number, line in enumerate(content.splitlines(), 1):
        _, mark, comment = line.partition("# ") if not line.startswith("#") else ("", "#", line[1:])
        if mark:
            yield Text(number, comment.strip())


def _blank(match: re.Match[str]) -> str:
    return re.sub(r"[^\n]", " ", match.group())


EXTRACTORS: tuple[tuple[tuple[str, ...], Callable[[str, str], Iterator[Text]]], ...] = (
    ((".py",), _python),
    ((".md",), _markdown),
    ((".html", ".txt"), _template),
    ((".js", ".mjs", ".cjs", ".ts", ".mts", ".css"), _javascript),
    ((".conf", ".service", ".yaml", ".yml", "Dockerfile"), _hash_comments),
)
SUFFIXES = tuple(suffix for suffixes, _ in EXTRACTORS for suffix in suffixes)


if __name__ == "__main__":
    sys.exit(main())
