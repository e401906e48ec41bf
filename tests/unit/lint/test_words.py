"""The word check finds the listed patterns in prose and passes over code."""

from __future__ import annotations

import pytest

from tests.lint import words


def found(path: str, content: str) -> list[tuple[int, str]]:
    return [(finding.line, finding.found) for finding in words.check(path, content)]


PYTHON = '''"""A module.

Whoever reads this.
"""

# A comment that says that
# somebody did it.
LIMIT = 1  # nobody's


def test_who_is_late_is_dropped():
    """The client is told apart."""
    raise ValueError("The client was told to leave")
'''


def test_python_docstrings_comments_messages_and_test_names_are_checked() -> None:
    assert sorted(found("apps/fanfare/module.py", PYTHON)) == [
        (3, "Whoever"),
        (7, "somebody"),
        (8, "nobody"),
        (11, "test_who_"),
        (13, "was told"),
    ]


def test_string_literals_of_tests_are_not_checked() -> None:
    assert found("tests/test_x.py", 'text = "nobody is here now"\n') == []


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("docs/a.md", "Run it as `nobody`.\n\n```\nnobody\n```\n"),
        ("docs/a.md", "Who may subscribe? A client with a signature."),
        ("myproject/templates/a.html", '<a class="nobody">{{ nobody }}{% if nobody %}x{% endif %}</a>'),
        ("apps/a.js", 'const nobody = "http://nobody.example";'),
        ("deploy/a.service", "User=nobody\n"),
    ],
)
def test_code_and_questions_are_not_checked(path: str, content: str) -> None:
    assert found(path, content) == []


@pytest.mark.parametrize(
    ("path", "content", "expected"),
    [
        ("docs/a.md", "# Title\n\nEvents for nobody.\n", (3, "nobody")),
        ("docs/a.md", "It is closed. Who reads slowly is closed.\n", (1, "Who")),
        ("myproject/templates/a.html", "<p>\nEverybody is here.</p>", (2, "Everybody")),
        ("apps/a.js", "/* a\n * somebody */", (2, "somebody")),
        ("deploy/a.conf", "a 1; # what is left\n", (1, "what is left")),
    ],
)
def test_prose_is_checked(path: str, content: str, expected: tuple[int, str]) -> None:
    assert found(path, content) == [expected]
