"""The handshake's checks: path, key, protocol version, origin."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fanfare.applications import registry
from fanfare.protocol import handshake, names, refusals
from tests.unit.protocol import fakes

KEY = fakes.APPLICATION.key


def accept(
    app: registry.Application = fakes.APPLICATION,
    *,
    path: str = f"/app/{KEY}",
    query: bytes = b"",
    origin: str | None = None,
) -> handshake.Handshake:
    applications = registry.Registry()
    applications.put(app)
    return handshake.accept(applications, path=path, query=query, origin=origin, address="192.0.2.7")


def refusal(*arguments: registry.Application, **options: object) -> refusals.ConnectionRefused:
    with pytest.raises(refusals.ConnectionRefused) as caught:
        accept(*arguments, **options)  # type: ignore[arg-type]
    return caught.value


@pytest.mark.parametrize(
    ("path", "prefix"), [(f"/app/{KEY}", ""), (f"/s/token/app/{KEY}", "/s/token"), (f"/app/x/app/{KEY}", "/app/x")]
)
def test_the_key_follows_the_last_app_of_the_path_after_any_prefix(path: str, prefix: str) -> None:
    accepted = accept(path=path)
    assert accepted.application is fakes.APPLICATION or accepted.application == fakes.APPLICATION
    assert accepted.client.prefix == prefix


@pytest.mark.parametrize(
    "path", ["/", "", "/app", "/app/", f"/app/{KEY}/", f"/app/{KEY}/x", f"app/{KEY}", f"/apps/{KEY}", "/x\ny"]
)
def test_another_path_is_refused_with_4005(path: str) -> None:
    assert refusal(path=path).code == 4005


@pytest.mark.parametrize("key", ["x", f"{KEY}\n", KEY.upper(), "\0", "ü"])
def test_an_unknown_key_is_refused_with_4001_and_named(key: str) -> None:
    refused = refusal(path=f"/app/{key}")
    assert refused.code == 4001
    assert refused.message == f"App key {refusals.quoted(key)} does not exist on this server"


def test_a_long_key_is_shortened_in_the_message() -> None:
    message = refusal(path="/app/" + "k" * 10_000).message
    assert message == f"App key {'k' * 39}… does not exist on this server"


def test_resume_token_is_taken_from_the_path_and_hidden_in_the_prefix() -> None:
    accepted = accept(path=f"/ws/s/{'t' * 16}/app/{KEY}")
    assert (accepted.token, accepted.client.prefix) == ("t" * 16, "/ws/s/…")
    assert accept(path=f"/s/{'t' * 15}/app/{KEY}").token is None


@pytest.mark.parametrize(("query", "with_offsets"), [(b"rt=1", True), (b"rt=2", False), (b"", False)])
def test_offsets_are_requested_with_a_parameter(query: bytes, with_offsets: bool) -> None:
    assert accept(query=query).with_offsets is with_offsets


def test_a_disabled_application_is_refused_with_4003() -> None:
    assert refusal(fakes.application(enabled=False)).code == 4003


@pytest.mark.parametrize(
    "query", [b"", b"protocol=", b"flash=false&x=%ff"] + [b"protocol=%s" % n for n in (b"4", b"5", b"6", b"7", b"07")]
)
def test_protocols_4_to_7_and_none_are_accepted(query: bytes) -> None:
    accept(query=query)


@pytest.mark.parametrize(
    ("version", "code"),
    [
        (b"0", 4007),
        (b"1", 4007),
        (b"3", 4007),
        (b"8", 4007),
        (b"47", 4007),
        (b"9" * 5_000, 4007),
        (b"abc", 4006),
        (b"-7", 4006),
        (b"7.0", 4006),
        (b"%D9%A7", 4006),
    ],
)
def test_another_protocol_is_refused(version: bytes, code: int) -> None:
    assert refusal(query=b"protocol=" + version).code == code


def test_refused_protocol_is_shortened_in_the_message() -> None:
    assert refusal(query=b"protocol=" + b"9" * 60).message == (
        f"Protocol version {'9' * 39}… is not supported: this server speaks 4 to 7"
    )
    message = refusal(query=b"protocol=" + b"x" * 60).message
    assert message == f'Invalid protocol version "{"x" * 39}…": a number is expected'


def test_client_name_and_version_are_kept_and_truncated() -> None:
    client = accept(query=b"client=js&version=" + b"8" * 100).client
    assert client == ("js", "8" * 40, "", "192.0.2.7")
    assert accept().client[:2] == ("", "")


def test_first_value_of_a_parameter_counts_also_if_it_is_empty() -> None:
    assert accept(query=b"client=&client=js&version=1&version=2").client[:2] == ("", "1")


def test_page_of_another_origin_is_refused_with_4009() -> None:
    app = fakes.application(allowed_origins=("https://example.com",))
    assert accept(app, origin="https://example.com").origin == "https://example.com"
    assert accept(app, origin=None).origin == ""
    refused = refusal(app, origin="https://evil.example")
    assert refused.code == 4009
    assert refused.message == 'The origin "https://evil.example" is not allowed for this application'


@settings(deadline=None)
@given(st.text(), st.binary(), st.none() | st.text())
def test_no_handshake_raises_anything_but_a_refusal(path: str, query: bytes, origin: str | None) -> None:
    app = fakes.application(allowed_origins=("https://example.com", "[", "*.x"))
    for tried in (path, f"{path}/app/{KEY}"):
        try:
            accept(app, path=tried, query=query, origin=origin)
        except refusals.ConnectionRefused as refused:
            assert 4000 <= refused.code < 4300


def test_socket_ids_have_the_form_that_the_sdks_insist_on_and_differ() -> None:
    made = {handshake.new_socket_id() for _ in range(1_000)}
    assert len(made) == 1_000
    assert all(names.is_valid_socket_id(one) and re.fullmatch(r"\d{1,10}\.\d{1,10}", one) for one in made)


def test_a_quotation_is_printable_and_short() -> None:
    assert refusals.quoted("a\x1b[31mb") == "a\\x1b[31mb"
    assert refusals.quoted("x" * 101) == "x" * 99 + "…"
