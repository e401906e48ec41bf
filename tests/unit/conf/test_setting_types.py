from __future__ import annotations

import base64
from pathlib import Path

import pytest

from fanfare import setting_types as types

KEY = bytes(range(32))


@pytest.mark.parametrize(
    ("type_", "text", "value"),
    [
        (types.Text(), "a b", "a b"),
        (types.Flag(), "True", True),
        (types.Flag(), "ON", True),
        (types.Flag(), "no", False),
        (types.Integer(1, 9), "9", 9),
        (types.Port(), "80", 80),
        (types.Port(), "tcp://10.0.0.1:80", 8000),
        (types.Seconds(0.1, 9), "1.5", 1.5),
        (types.Choice(["a", "b"]), "B", "b"),
        (types.Listed(), " a, ,b ,", ["a", "b"]),
        (types.Networks(), "127.0.0.1,10.0.0.0/8,::1,unix", ["127.0.0.1/32", "10.0.0.0/8", "::1/128", "unix"]),
        (
            types.Origins(),
            "https://Shop.example.com:443, http://localhost:3000,http://[::1]:80,https://*.müller.de,capacitor://localhost",
            [
                "https://shop.example.com",
                "http://localhost:3000",
                "http://[::1]",
                "https://*.xn--mller-kva.de",
                "capacitor://localhost",
            ],
        ),
        (types.Key(32), base64.b64encode(KEY).decode(), KEY),
        (types.Folder(), "/srv/data", Path("/srv/data")),
        (types.UrlPath(), "/", "/"),
        (types.UrlPath(), "realtime", "/realtime/"),
        (types.UrlPath(), "/a/b/", "/a/b/"),
        (types.Url(), "https://realtime.example.com:8443/x/", "https://realtime.example.com:8443/x"),
        (types.Mounts(), "/shop=main:app, /a/b=x.y:make.app ,", {"/shop": "main:app", "/a/b": "x.y:make.app"}),
        (types.Declarations(), "1:k:s", "1:k:s"),
    ],
)
def test_text_of_a_variable_becomes_a_typed_value(type_, text, value):
    found = type_.from_text(text)
    assert found == value
    assert type(found) is type(value)
    assert type_.from_text(type_.to_text(found)) == value, "the text of a value is read as the same value"
    assert type_.from_value(found) == value, "the settings module may hold the value itself"


@pytest.mark.parametrize(
    ("type_", "text", "sentence"),
    [
        (types.Flag(), "maybe", "is 'maybe'; it must be one of 1, true, yes, on, 0, false, no, off"),
        (types.Integer(1, 9), "ten", "is 'ten'; it must be a whole number from 1 to 9"),
        (types.Integer(1, 9), "10", "is '10'; it must be a whole number from 1 to 9"),
        (types.Integer(1, 9), "1.5", "is '1.5'; it must be a whole number from 1 to 9"),
        (types.Seconds(1, 9), "nan", "is 'nan'; it must be a number of seconds from 1 to 9"),
        (types.Seconds(1, 9), "0.5", "is '0.5'; it must be a number of seconds from 1 to 9"),
        (types.Choice(["a", "b"]), "c", "is 'c'; it must be one of a, b"),
        (types.Mounts(), "/shop", "has '/shop'; an entry looks like /shop=main:app"),
        (types.Mounts(), "/a=x:y,/a=z:y", "names '/a' twice"),
    ],
)
def test_bad_text_is_refused_with_the_value_and_what_is_allowed(type_, text, sentence):
    with pytest.raises(types.Refused) as caught:
        type_.from_text(text)
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("type_", "value"),
    [
        (types.Text(), 1),
        (types.Flag(), "no"),
        (types.Flag(), 1),
        (types.Integer(0, 9), True),
        (types.Integer(0, 9), "5"),
        (types.Integer(0, 9), 5.0),
        (types.Seconds(0, 9), "5"),
        (types.Seconds(0, 9), True),
        (types.Seconds(0, 9), 10),
        (types.Choice(["a"]), None),
        (types.Listed(), "a,b"),
        (types.Listed(), [1]),
        (types.Networks(), ["nginx"]),
        (types.Key(32), bytes(31)),
        (types.Key(32), 32),
        (types.Folder(), 1),
        (types.Folder(), ""),
        (types.UrlPath(), None),
        (types.Url(), None),
        (types.Mounts(), ["/shop=main:app"]),
        (types.Mounts(), {"/shop": object()}),
        (types.Declarations(), {"id": 1}),
        (types.Declarations(), [object()]),
    ],
)
def test_settings_module_value_of_another_type_is_refused(type_, value):
    with pytest.raises(types.Refused):
        type_.from_value(value)


@pytest.mark.parametrize("text", ["hush", "aHVzaA==", "%%%%", "é" * 44, base64.b64encode(bytes(33)).decode()])
def test_key_of_another_length_is_refused_and_not_shown(text):
    with pytest.raises(types.Refused, match="must be 32 bytes in base64") as caught:
        types.Key(32).from_text(text)
    assert text not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "shop.example.com",
        "https://a/",
        "https://a/b",
        "*",
        "https://a:port",
        "https://u@a",
        "*.example.com",
        "https://a.*.com",
        "https://a?x",
        "null",
    ],
)
def test_text_that_is_no_origin_is_refused(text):
    with pytest.raises(types.Refused, match="an origin looks like"):
        types.Origins().from_text(text)


@pytest.mark.parametrize(
    "text", ["realtime.example.com", "wss://a", "https://a?x", "https://a#x", "https://", "https://a:x"]
)
def test_text_that_is_no_url_is_refused(text):
    with pytest.raises(types.Refused, match="it must be a URL such as"):
        types.Url().from_text(text)


def test_password_in_a_url_is_refused_and_not_shown():
    with pytest.raises(types.Refused) as caught:
        types.Url().from_text("https://me:hush@realtime.example.com")
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("text", ["/a b/", "/a//b/", "/../", "/ü/", "/a?b"])
def test_text_that_is_no_path_is_refused(text):
    with pytest.raises(types.Refused, match="it must be a path such as /realtime/"):
        types.UrlPath().from_text(text)


def test_declared_applications_may_be_a_list():
    text = types.Declarations().from_value([{"id": "1", "key": "k", "secret": "s"}])
    assert text == '[{"id": "1", "key": "k", "secret": "s"}]'
