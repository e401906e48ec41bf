from __future__ import annotations

import base64
from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured

from fanfare import environment

NAME = "FANFARE_SOMETHING"


def test_a_variable_that_is_not_given_has_its_default():
    assert environment.text(NAME, "x") == "x"
    assert environment.flag(NAME, default=True) is True
    assert environment.integer(NAME, 7, minimum=1, maximum=9) == 7
    assert environment.listed(NAME, ["a"]) == ["a"]


def test_an_empty_variable_counts_as_not_given(monkeypatch):
    monkeypatch.setenv(NAME, "  ")
    assert environment.integer(NAME, 7, minimum=1, maximum=9) == 7


@pytest.mark.parametrize(
    ("value", "expected"), [("1", True), ("True", True), ("ON", True), ("0", False), ("no", False)]
)
def test_a_flag_is_read_in_every_usual_spelling(monkeypatch, value, expected):
    monkeypatch.setenv(NAME, value)
    assert environment.flag(NAME, default=not expected) is expected


@pytest.mark.parametrize(
    ("read", "value"),
    [
        (lambda: environment.flag(NAME, default=False), "maybe"),
        (lambda: environment.integer(NAME, 1, minimum=1, maximum=9), "ten"),
        (lambda: environment.integer(NAME, 1, minimum=1, maximum=9), "10"),
        (lambda: environment.integer(NAME, 1, minimum=1, maximum=9), "1.5"),
        (lambda: environment.seconds(NAME, 1, minimum=1, maximum=9), "nan"),
        (lambda: environment.seconds(NAME, 1, minimum=1, maximum=9), "0.5"),
        (lambda: environment.choice(NAME, "a", ["a", "b"]), "c"),
    ],
)
def test_a_bad_value_is_refused_with_the_name_and_the_value(monkeypatch, read, value):
    monkeypatch.setenv(NAME, value)
    with pytest.raises(ImproperlyConfigured) as caught:
        read()
    assert NAME in str(caught.value)
    assert repr(value) in str(caught.value)
    assert str(caught.value).count(". ") == 0, "it is one sentence"


@pytest.mark.parametrize("value", ["hush", "aHVzaA==", "%%%%", "é" * 44, base64.b64encode(bytes(33)).decode()])
def test_a_key_of_another_length_is_refused_and_not_shown(monkeypatch, value):
    monkeypatch.setenv(NAME, value)
    with pytest.raises(ImproperlyConfigured, match=f"{NAME} must be 32 bytes in base64") as caught:
        environment.secret_key(NAME, size=32)
    assert value not in str(caught.value)


def test_a_key_is_read_from_base64(monkeypatch):
    assert environment.secret_key(NAME, size=32) == b""
    monkeypatch.setenv(NAME, base64.b64encode(bytes(range(32))).decode())
    assert environment.secret_key(NAME, size=32) == bytes(range(32))


def test_a_list_has_no_empty_items(monkeypatch):
    monkeypatch.setenv(NAME, " a, ,b ,")
    assert environment.listed(NAME) == ["a", "b"]


def test_a_value_may_stand_in_a_file(monkeypatch, tmp_path: Path):
    (tmp_path / "secret").write_text("hush\n")
    monkeypatch.setenv(f"{NAME}_FILE", str(tmp_path / "secret"))
    assert environment.text(NAME) == "hush"


def test_a_file_that_is_not_there_is_named(monkeypatch, tmp_path: Path):
    monkeypatch.setenv(f"{NAME}_FILE", str(tmp_path / "absent"))
    with pytest.raises(ImproperlyConfigured, match=rf"{NAME}_FILE is '.*absent'"):
        environment.text(NAME)


def test_a_value_and_a_file_together_are_refused_without_showing_either(monkeypatch, tmp_path: Path):
    (tmp_path / "secret").write_text("hush")
    monkeypatch.setenv(NAME, "open")
    monkeypatch.setenv(f"{NAME}_FILE", str(tmp_path / "secret"))
    with pytest.raises(ImproperlyConfigured, match="both given") as caught:
        environment.text(NAME)
    assert "open" not in str(caught.value)


def test_the_env_file_gives_way_to_the_real_environment(monkeypatch, tmp_path: Path):
    monkeypatch.delenv("FANFARE_ENV_FILE")
    monkeypatch.setenv("FANFARE_REAL", "real")
    monkeypatch.setenv("FANFARE_ONLY_IN_FILE", "")
    monkeypatch.delenv("FANFARE_ONLY_IN_FILE")
    (tmp_path / ".env").write_text("FANFARE_REAL=file\nFANFARE_ONLY_IN_FILE=pa$$word${x}\n")
    environment.load(tmp_path / ".env")
    assert environment.text("FANFARE_REAL") == "real"
    assert environment.text("FANFARE_ONLY_IN_FILE") == "pa$$word${x}"


def test_a_relative_path_starts_at_the_project(monkeypatch, tmp_path: Path):
    monkeypatch.setenv(NAME, "data")
    assert environment.path(NAME, "var", base=tmp_path) == tmp_path / "data"
    monkeypatch.setenv(NAME, "/srv/data")
    assert environment.path(NAME, "var", base=tmp_path) == Path("/srv/data")


def test_origins_get_the_form_that_browsers_send(monkeypatch):
    monkeypatch.setenv(NAME, "https://Shop.example.com:443, http://localhost:3000,http://[::1]:80")
    assert environment.origins(NAME) == ["https://shop.example.com", "http://localhost:3000", "http://[::1]"]


@pytest.mark.parametrize(
    "value",
    [
        "shop.example.com",
        "https://a/",
        "https://a/b",
        "*",
        "https://a:port",
        "ftp://a",
        "https://u@a",
        "https://a?x",
        "null",
    ],
)
def test_what_is_no_origin_is_refused_by_name(monkeypatch, value):
    monkeypatch.setenv(NAME, value)
    with pytest.raises(ImproperlyConfigured, match=NAME):
        environment.origins(NAME)
