"""Parse the documentation: its pages, their links and code blocks."""

from __future__ import annotations

import fnmatch
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[3]

# Fenced and indented blocks are code: their links and words do not count.
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_STEP = re.compile(
    r"^## (?P<heading>[^\n]+)$|^```(?P<language>\w*)\n(?P<code>.*?)^```$|(?P<commands>(?:^    \S[^\n]*\n)+)",
    re.MULTILINE | re.DOTALL,
)
_FILE = re.compile(r"^`([\w./-]+)`\n+\Z", re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)


# A block of a shell: indented, also below an item of a list, or fenced. Other fenced blocks are files.
_INDENTED = re.compile(r"(?<=\n\n)((?: {4,}[^\n]*\n)+)")
_AT_THE_MARGIN = re.compile(r"^\S.*$", re.MULTILINE)
_ITEM = re.compile(r"(?:\d+\.|-) ")
_SHELL_FENCE = re.compile(r"^```(?:sh|bash)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_ANY_FENCE = re.compile(r"^( *)```.*?^\1```$", re.MULTILINE | re.DOTALL)
_LINE = re.compile(r"[^\n]*<<'END'\n.*?\nEND\n|(?:[^\n]*\\\n)*[^\n]*\n", re.DOTALL)  # or a here-document


class Command(NamedTuple):
    """A line of a shell block, with its continuation lines and without its comment. `page`: below ROOT."""

    page: str
    line: int
    text: str


class CommandRow(NamedTuple):
    """A row of the table of commands in docs/reference/proof.md. `pages`, `patterns`: empty for any."""

    pages: tuple[str, ...]
    patterns: tuple[str, ...]
    proof: str

    def covers(self, command: Command) -> bool:
        return (not self.pages or command.page in self.pages) and (
            not self.patterns or any(fnmatch.fnmatchcase(command.text, pattern) for pattern in self.patterns)
        )


class Block(NamedTuple):
    """A code block. `file`: the file name in the line above it, otherwise that of the previous block."""

    language: str
    text: str
    file: str
    line: int


def all_pages() -> list[Path]:
    return sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/*.md")])


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    file = ""
    for match in _FENCE.finditer(text):
        above = _FILE.search(text, 0, match.start())
        file = above[1] if above else file
        yield Block(match[1], match[2], file, text.count("\n", 0, match.start()) + 1)


def snippet(page: str, containing: str, *, language: str = "js") -> str:
    """The only block of a page in this language that contains this text. `page`: below ROOT."""
    (block,) = [one for one in blocks(ROOT / page) if one.language == language and containing in one.text]
    return block.text


def run(page: str, *, containing: str, **names: Any) -> dict[str, Any]:
    """Run the Python block of a page that contains this text, and return its names. `page`: below ROOT."""
    (block,) = [one for one in blocks(ROOT / page) if one.language == "python" and containing in one.text]
    found = dict(names)
    exec(compile(block.text, f"{page}:{block.line}", "exec", dont_inherit=True), found)
    return found


def steps(page: Path) -> Iterator[tuple[str, Block]]:
    """The steps of a page in order, with their headings. A fenced block is a file or a diff; an indented block is
    commands, with the language `shell` and without a file.
    """
    text = page.read_text(encoding="utf-8")
    heading = file = ""
    for match in _STEP.finditer(text):
        heading = match["heading"] or heading
        line = text.count("\n", 0, match.start()) + 1
        if match["commands"]:
            yield heading, Block("shell", textwrap.dedent(match["commands"]), "", line)
        elif match["code"] is not None:
            above = _FILE.search(text, 0, match.start())
            file = above[1] if above else file
            yield heading, Block(match["language"], match["code"], file, line)


def apply(file: Path, block: Block) -> None:
    """Write the block to the file. A diff has one existing line, around which its new lines are added."""
    if block.language != "diff":
        file.write_text(block.text, encoding="utf-8")
        return
    (known,) = [line[1:].strip() for line in block.text.splitlines() if not line.startswith("+")]
    text = file.read_text(encoding="utf-8")
    (margin,) = re.findall(rf"^( *){re.escape(known)}$", text, re.MULTILINE)
    wanted = "\n".join(margin + line[1:].strip() for line in block.text.splitlines())
    file.write_text(text.replace(margin + known, wanted), encoding="utf-8")


def shell_lines(page: Path) -> Iterator[Command]:
    """Every line of the page's shell blocks: commands, settings, and what else is indented."""
    text = page.read_text(encoding="utf-8")
    prose = _ANY_FENCE.sub(lambda fence: re.sub(r"[^\n]", "-", fence[0]), text)
    for block in sorted([*_SHELL_FENCE.finditer(text), *_INDENTED.finditer(prose)], key=lambda found: found.start(1)):
        line = text.count("\n", 0, block.start(1)) + 1
        above = _AT_THE_MARGIN.findall(prose, 0, block.start(1))
        if block[1][4:5].isupper() and above and _ITEM.match(above[-1]):
            continue  # a paragraph of the item
        for found in _LINE.findall(block[1]):
            here_document = "<<" in found
            joined = found.strip() if here_document else re.sub(r"\\\n *", "", found).strip()
            command = joined if here_document else re.split(r" {2,}", joined, maxsplit=1)[0]  # without a comment
            if command:
                yield Command(name(page), line, command)
            line += found.count("\n")


def command_rows() -> list[CommandRow]:
    text = (ROOT / "docs/reference/proof.md").read_text(encoding="utf-8").split("## Commands of the pages\n", 1)[1]
    rows = [row.strip("| ").split(" | ") for row in text.split("\n## ")[0].splitlines() if row.startswith("|")][2:]
    return [
        CommandRow(
            tuple(name((ROOT / "docs/reference" / link).resolve()) for link in _LINK.findall(where)),
            tuple(re.findall(r"`([^`]+)`", commands)),
            proof,
        )
        for where, commands, proof in rows
    ]


def links(page: Path) -> list[str]:
    return _LINK.findall(_FENCE.sub("", page.read_text(encoding="utf-8")))


def anchors(page: Path) -> set[str]:
    """The fragments of a page's headings, as code hosts generate them."""
    headings = _HEADING.findall(_FENCE.sub("", page.read_text(encoding="utf-8")))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def table(page: Path, heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without the header row and backticks."""
    section = re.split(r"^#+ ", page.read_text(encoding="utf-8").split(f"# {heading}\n", 1)[1], flags=re.MULTILINE)[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip().replace("`", "") for cell in row[1:-1].split("|")] for row in rows[2:]]
