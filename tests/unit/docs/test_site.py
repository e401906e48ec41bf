"""The documentation as a site: it builds without a warning, and the project shows it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from django.test import Client, override_settings

from tests.unit.docs import pages


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("site")
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(target)],
        cwd=pages.ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return target


def test_every_page_is_on_the_site_and_can_be_searched(site: Path) -> None:
    found = json.loads((site / "search/search_index.json").read_text(encoding="utf-8"))
    searched = {entry["location"].partition("#")[0] for entry in found["docs"]}
    docs = pages.ROOT / "docs"
    for page in docs.glob("*/*.md"):
        location = page.relative_to(docs).with_suffix(".html").as_posix()
        assert (site / location).exists()
        assert location in searched


def test_lists_are_lists_on_the_site(site: Path) -> None:
    """GitHub begins a list in the middle of a paragraph, the site only after an empty line."""
    text = {page: page.read_text(encoding="utf-8") for page in site.rglob("*.html")}
    wrong = [
        str(page) for page, html in text.items() if re.search(r"<p>(?:(?!</p>).)*\n(?:- |\d+\. )", html, re.DOTALL)
    ]
    assert wrong == []


def test_sections_are_in_the_order_of_reading(site: Path) -> None:
    navigation = (site / "404.html").read_text(encoding="utf-8").partition('<nav class="md-nav md-nav--primary')[2]
    titles = re.findall(r"Tutorial|How to|Explanation|Reference", navigation)
    assert list(dict.fromkeys(titles)) == ["Tutorial", "How to", "Explanation", "Reference"]


def test_pages_load_nothing_from_other_hosts(site: Path) -> None:
    text = (site / "how-to/deploy.html").read_text(encoding="utf-8")
    assert 'src="http' not in text
    assert "fonts.googleapis.com" not in text


@override_settings(ROOT_URLCONF="myproject.urls")
def test_project_shows_the_built_site(site: Path) -> None:
    with override_settings(DOCUMENTATION=site):
        client = Client()
        page = client.get("/docs/how-to/deploy.html")
        assert page.status_code == 200
        assert b"Deploy without losing events" in b"".join(page)  # type: ignore[arg-type]
        assert b"<title>Fanfare</title>" in b"".join(client.get("/docs/"))  # type: ignore[arg-type]
        assert b"seven short steps" in client.get("/docs/start/").content
        assert client.get("/docs/../settings.py").status_code in (400, 404)
    with override_settings(DOCUMENTATION=site / "none"):
        assert Client().get("/docs/how-to/deploy.html").status_code == 404
        assert b"seven short steps" in Client().get("/docs/").content
