"""Links, file names and code of the documentation are valid."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.unit.docs import pages

PAGES = pages.all_pages()
PICTURE_BYTES = 300_000  # so that the README loads quickly

on_every_page = pytest.mark.parametrize("page", PAGES, ids=pages.name)


@on_every_page
def test_links_have_targets(page: Path) -> None:
    for link in pages.links(page):
        parts = urlsplit(link)
        if parts.scheme:
            continue
        target = (page.parent / parts.path).resolve() if parts.path else page
        assert target.exists(), f"{pages.name(page)} links to {link}, which does not exist"
        if parts.fragment:
            assert parts.fragment in pages.anchors(target), (
                f"{pages.name(page)} links to {link}, a heading that does not exist"
            )


@on_every_page
def test_python_compiles_and_json_parses(page: Path) -> None:
    for block in pages.blocks(page):
        place = f"{pages.name(page)}:{block.line}"
        if block.language == "python":
            compile(block.text, place, "exec", dont_inherit=True)
        elif block.language == "json":
            json.loads(block.text)
        else:
            assert block.language, f"{place} has no language"


def test_index_links_every_page() -> None:
    index = pages.ROOT / "docs/README.md"
    linked = {(index.parent / link).resolve() for link in pages.links(index)}
    assert {page for page in PAGES if pages.ROOT / "docs" in page.parents} - {index} == linked


def test_pictures_are_small() -> None:
    pictures = list(pages.ROOT.glob("docs/images/*.png"))
    assert pictures
    for picture in pictures:
        assert picture.stat().st_size < PICTURE_BYTES, pages.name(picture)


@on_every_page
def test_named_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^(\w+):", (pages.ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"(?:^    |`)make (\w+)(?![=\w])", text, re.MULTILINE))
    assert named <= targets


@on_every_page
def test_named_files_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    made_by_the_reader = ("apps/board", "apps/chat", "apps/shop", "deploy/fanfare_apps")
    for name in re.findall(r"`((?:apps|myproject|deploy|docs|tests)/[\w./-]+)`", text):
        if not name.startswith(made_by_the_reader):
            assert (pages.ROOT / name).exists(), f"{pages.name(page)} names {name}, which does not exist"


def test_description_of_the_package_stands_alone_and_repeats_tested_code() -> None:
    description = pages.ROOT / "apps/fanfare/README.md"
    assert pages.links(description) == [], "a package index shows no page of the repository"
    tested = "".join(
        (pages.ROOT / name).read_text(encoding="utf-8")
        for name in ("README.md", "docs/how-to/existing-project.md", "docs/how-to/page-client.md")
    )
    for block in pages.blocks(description):
        assert block.text in tested, f"{description.name}:{block.line}"
    for command in pages.shell_lines(description):
        assert f"    {command.text}\n" in tested, command.text
    extras = tomllib.loads((pages.ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert [name for name in extras if f"[{name}]" not in description.read_text(encoding="utf-8")] == []
