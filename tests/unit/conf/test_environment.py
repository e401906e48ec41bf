from __future__ import annotations

from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured

from fanfare import environment

NAME = "FANFARE_SOMETHING"


@pytest.fixture(autouse=True)
def _forget_names(monkeypatch):
    """The names that this module reads are not settings elsewhere."""
    monkeypatch.setattr(environment, "names_read", set())


def test_unset_variable_has_its_default():
    assert environment.text(NAME, "x") == "x"
    assert environment.flag(NAME, default=True) is True
    assert environment.integer(NAME, 7, minimum=1, maximum=9) == 7
    assert environment.listed(NAME, ["a"]) == ["a"]


def test_empty_variable_counts_as_unset(monkeypatch):
    monkeypatch.setenv(NAME, "  ")
    assert environment.integer(NAME, 7, minimum=1, maximum=9) == 7


@pytest.mark.parametrize(
    ("read", "value"),
    [
        (lambda: environment.flag(NAME, default=False), "maybe"),
        (lambda: environment.integer(NAME, 1, minimum=1, maximum=9), "ten"),
        (lambda: environment.choice(NAME, "a", ["a", "b"]), "c"),
    ],
)
def test_bad_value_is_refused_with_the_name_and_the_value(monkeypatch, read, value):
    monkeypatch.setenv(NAME, value)
    with pytest.raises(ImproperlyConfigured, match=rf"^{NAME} is '{value}'; it must be [^.]+\.$"):
        read()


def test_value_may_stand_in_a_file(monkeypatch, tmp_path: Path):
    (tmp_path / "secret").write_text("hush\n")
    monkeypatch.setenv(f"{NAME}_FILE", str(tmp_path / "secret"))
    assert environment.text(NAME) == "hush"


def test_missing_file_is_named(monkeypatch, tmp_path: Path):
    monkeypatch.setenv(f"{NAME}_FILE", str(tmp_path / "absent"))
    with pytest.raises(ImproperlyConfigured, match=rf"{NAME}_FILE is '.*absent'"):
        environment.text(NAME)


def test_value_and_file_together_are_refused_without_showing_either(monkeypatch, tmp_path: Path):
    (tmp_path / "secret").write_text("hush")
    monkeypatch.setenv(NAME, "open")
    monkeypatch.setenv(f"{NAME}_FILE", str(tmp_path / "secret"))
    with pytest.raises(ImproperlyConfigured, match="both given") as caught:
        environment.text(NAME)
    assert "open" not in str(caught.value)


def test_relative_path_starts_at_the_base(monkeypatch, tmp_path: Path):
    monkeypatch.setenv(NAME, "data")
    assert environment.path(NAME, "var", base=tmp_path) == tmp_path / "data"
    monkeypatch.setenv(NAME, "/srv/data")
    assert environment.path(NAME, "var", base=tmp_path) == Path("/srv/data")


def test_names_that_were_read_are_remembered():
    environment.text(NAME)
    assert environment.names_read == {NAME}
