"""Which requests count as signed. Texts that are signed here are written out, as a client's author would read them."""

from __future__ import annotations

import dataclasses
import hashlib
from urllib.parse import quote

import pytest

from fanfare.api import asgi
from fanfare.applications import registry
from tests.unit.api import fakes

EVENT = b'{"name":"created","channel":"news","data":"{}"}'
EVENTS = "/apps/3/events"
CHANNELS = "/apps/3/channels"


async def ask(client: fakes.Client, method: str, target: str, body: bytes = b"") -> fakes.Answer:
    answer = await client.request(method, target, body)
    assert answer is not None
    return answer


async def test_example_of_the_vendors_documentation_is_accepted(
    hub: fakes.Hub, applications: registry.Registry
) -> None:
    body = b'{"name":"foo","channels":["project-3"],"data":"{\\"some\\":\\"data\\"}"}'
    api = asgi.Api(hub, applications, now=lambda: 1353088179)  # type: ignore[arg-type]
    answer = await ask(
        fakes.Client(api),
        "POST",
        "/apps/3/events?auth_key=278d425bdf160c739803&auth_timestamp=1353088179&auth_version=1.0"
        "&body_md5=ec365a775a4cd0599faeb73354201b6f"
        "&auth_signature=da454824c97ba181a32ccc17a72625ba02771f50b50e1e7430e47a1f3f457e6c",
        body,
    )
    assert (answer.status, answer.body) == (200, b"{}")
    assert hub.frames == [{"event": "foo", "channel": "project-3", "data": '{"some":"data"}'}]


@pytest.mark.parametrize("distance", [-600, 0, 600])
async def test_timestamp_within_600_s_is_accepted(client: fakes.Client, distance: int) -> None:
    target = fakes.signed("GET", CHANNELS, auth_timestamp=str(fakes.NOW + distance))
    assert (await ask(client, "GET", target)).status == 200


@pytest.mark.parametrize(("distance", "word"), [(-601, "behind"), (601, "ahead")])
async def test_timestamp_beyond_600_s_is_refused_with_both_numbers(
    client: fakes.Client, distance: int, word: str
) -> None:
    answer = await ask(client, "GET", fakes.signed("GET", CHANNELS, auth_timestamp=str(fakes.NOW + distance)))
    assert (answer.status, answer.json["code"]) == (401, "expired_timestamp")
    assert word in answer.json["error"]
    assert "601 s" in answer.json["error"]
    assert "600 s" in answer.json["error"]


@pytest.mark.parametrize("timestamp", ["soon", "-1", "1e9", "17.5", "\N{ARABIC-INDIC DIGIT ONE}", "9" * 5_000])
async def test_timestamp_that_is_not_a_number_is_refused(client: fakes.Client, timestamp: str) -> None:
    answer = await ask(client, "GET", fakes.signed("GET", CHANNELS, auth_timestamp=timestamp))
    assert (answer.status, answer.json["code"]) == (401, "invalid_timestamp")


@pytest.mark.parametrize("missing", ["auth_key", "auth_timestamp"])
async def test_missing_signature_parameter_is_named(client: fakes.Client, missing: str) -> None:
    answer = await ask(client, "GET", fakes.signed("GET", CHANNELS, **{missing: None}))
    assert (answer.status, answer.json["code"]) == (401, "missing_parameter")
    assert missing in answer.json["error"]


async def test_unsigned_request_is_refused(client: fakes.Client) -> None:
    assert (await ask(client, "GET", CHANNELS)).status == 401
    answer = await ask(client, "GET", CHANNELS + "?auth_key=278d425bdf160c739803&auth_timestamp=1700000000")
    assert "auth_signature" in answer.json["error"]


async def test_wrong_key_with_the_right_secret_is_refused(client: fakes.Client) -> None:
    answer = await ask(client, "GET", fakes.signed("GET", CHANNELS, auth_key="another"))
    assert (answer.status, answer.json["code"]) == (401, "invalid_key")


async def test_application_cannot_sign_for_another_application(
    client: fakes.Client, applications: registry.Registry, hub: fakes.Hub
) -> None:
    applications.put(registry.Application(id="4", key="other-key", secret="other-secret"))
    answer = await ask(client, "POST", fakes.signed("POST", "/apps/4/events", EVENT), EVENT)
    assert (answer.status, answer.json["code"]) == (401, "invalid_key")
    assert hub.published == []


async def test_unknown_auth_version_is_refused(client: fakes.Client) -> None:
    answer = await ask(client, "GET", fakes.signed("GET", CHANNELS, auth_version="2.0"))
    assert (answer.status, answer.json["code"]) == (401, "invalid_version")


@pytest.mark.parametrize(("seconds_left", "status"), [(1, 200), (0, 401)])
async def test_previous_secret_is_valid_until_its_grace_period_ends(
    client: fakes.Client, applications: registry.Registry, seconds_left: int, status: int
) -> None:
    old = fakes.signed("GET", CHANNELS)
    rotated = dataclasses.replace(
        fakes.APPLICATION,
        secret="new",
        previous_secret=fakes.APPLICATION.secret,
        previous_secret_until=fakes.NOW + seconds_left,
    )
    applications.put(rotated)
    assert (await ask(client, "GET", old)).status == status
    unsigned, _, _ = old.rpartition("&")
    text = f"GET\n{CHANNELS}\n{unsigned.partition('?')[2]}"
    new = f"{unsigned}&auth_signature={fakes.signature(text, rotated.secret)}"
    assert (await ask(client, "GET", new)).status == 200


async def test_repeated_signature_parameter_is_refused(client: fakes.Client) -> None:
    answer = await ask(client, "GET", fakes.signed("GET", CHANNELS) + "&auth_key=another")
    assert (answer.status, answer.json["code"]) == (401, "repeated_parameter")


@pytest.mark.parametrize("wrong", ["0" * 64, "", "é", "%00", "x" * 10_000])
async def test_refusal_of_a_signature_shows_the_string_to_sign_and_no_secret(
    client: fakes.Client, hub: fakes.Hub, wrong: str
) -> None:
    right = fakes.signed("POST", EVENTS, EVENT)
    target, _, expected = right.rpartition("=")
    answer = await ask(client, "POST", f"{target}={wrong}", EVENT)
    assert answer.status == 401
    text = answer.body.decode()
    assert expected not in text
    assert fakes.APPLICATION.secret not in text
    if wrong:
        signed_text = target.partition("?")[2].removesuffix("&auth_signature")
        assert f"POST\\n/apps/3/events\\n{signed_text}" in answer.json["error"]
    assert hub.published == []
    assert hub.counters["api.refused.401"] == 1


@pytest.mark.parametrize(
    ("method", "path"), [("GET", EVENTS), ("POST", "/apps/3/batch_events")], ids=["method", "path"]
)
async def test_signature_is_valid_for_one_method_and_one_path(client: fakes.Client, method: str, path: str) -> None:
    query = fakes.signed(method, path, EVENT).partition("?")[2]
    answer = await ask(client, "POST", f"{EVENTS}?{query}", EVENT)
    assert (answer.status, answer.json["code"]) == (401, "invalid_signature")


async def test_changed_body_is_refused(client: fakes.Client, hub: fakes.Hub) -> None:
    answer = await ask(client, "POST", fakes.signed("POST", EVENTS, EVENT), EVENT.replace(b"created", b"deleted"))
    assert (answer.status, answer.json["code"]) == (401, "invalid_body_md5")
    assert hub.published == []


async def test_lost_body_is_refused(client: fakes.Client, hub: fakes.Hub) -> None:
    arguments = {"name": "created", "channel": "news", "data": "x"}
    answer = await ask(client, "POST", fakes.signed("POST", EVENTS, EVENT, query=arguments))
    assert (answer.status, answer.json["code"]) == (401, "invalid_body_md5")
    assert hub.published == []


async def test_body_without_body_md5_is_refused(client: fakes.Client) -> None:
    answer = await ask(client, "POST", fakes.signed("POST", EVENTS, EVENT, body_md5=None), EVENT)
    assert (answer.status, answer.json["code"]) == (401, "missing_body_md5")


async def test_get_may_sign_the_md5_of_an_empty_body(client: fakes.Client) -> None:
    empty = hashlib.md5(b"", usedforsecurity=False).hexdigest()
    assert (await ask(client, "GET", fakes.signed("GET", CHANNELS, body_md5=empty))).status == 200


async def test_parameter_names_are_signed_in_lower_case(client: fakes.Client) -> None:
    target = fakes.signed("GET", CHANNELS, query={"filter_by_prefix": "news"})
    assert (await ask(client, "GET", target.replace("filter_by_prefix", "Filter_By_Prefix"))).status == 200


@pytest.mark.parametrize("signs_raw", [False, True], ids=["signs decoded", "signs what is sent"])
@pytest.mark.parametrize("sends_escaped", [False, True], ids=["sends it plain", "sends it escaped"])
async def test_channel_in_the_path_may_be_escaped_or_not(
    client: fakes.Client, signs_raw: bool, sends_escaped: bool
) -> None:
    name = "news@,;=.x"
    sent = f"/apps/3/channels/{quote(name, safe='') if sends_escaped else name}"
    path = sent if signs_raw else f"/apps/3/channels/{name}"
    query = fakes.signed("GET", path).partition("?")[2]
    assert (await ask(client, "GET", f"{sent}?{query}")).status == 200


@pytest.mark.parametrize("signs_raw", [False, True], ids=["signs decoded", "signs what is sent"])
@pytest.mark.parametrize(
    ("sent", "value"), [("a%40b", "a@b"), ("a+b", "a b"), ("a+b", "a+b"), ("a%20b", "a b"), ("a,b", "a,b")]
)
async def test_value_in_the_query_may_be_escaped_or_not(
    client: fakes.Client, signs_raw: bool, sent: str, value: str
) -> None:
    joined = f"auth_key={fakes.APPLICATION.key}&auth_timestamp={fakes.NOW}&auth_version=1.0&filter_by_prefix="
    text = f"GET\n{CHANNELS}\n{joined}{sent if signs_raw else value}"
    target = f"{CHANNELS}?{joined}{sent}&auth_signature={fakes.signature(text)}"
    assert (await ask(client, "GET", target)).status == 200


@pytest.mark.parametrize(
    ("sent", "signed"),
    [
        ("channels[]=a&channels[]=b", "channels[]=a&channels[]=b"),
        ("channels%5B%5D=a&channels%5B%5D=b", "channels[]=a&channels[]=b"),
        ("channels[]=a&channels[]=b", "channels=a,b"),
        ("channels%5B0%5D=a&channels%5B1%5D=b", "channels=a,b"),
    ],
)
async def test_array_may_be_signed_as_sent_or_joined_by_commas(
    client: fakes.Client, hub: fakes.Hub, sent: str, signed: str
) -> None:
    before = f"auth_key={fakes.APPLICATION.key}&auth_timestamp={fakes.NOW}&auth_version=1.0"
    text = f"POST\n{EVENTS}\n{before}&{signed}&data=x&name=created"
    target = f"{EVENTS}?{before}&{sent}&data=x&name=created&auth_signature={fakes.signature(text)}"
    answer = await ask(client, "POST", target)
    assert answer.status == 200, answer.body
    assert [frame["channel"] for frame in hub.frames] == ["a", "b"]


async def test_disabled_application_gets_403_after_its_signature_was_verified(
    client: fakes.Client, applications: registry.Registry, hub: fakes.Hub
) -> None:
    applications.put(dataclasses.replace(fakes.APPLICATION, enabled=False))
    assert (await ask(client, "POST", EVENTS, EVENT)).status == 401
    answer = await ask(client, "POST", fakes.signed("POST", EVENTS, EVENT), EVENT)
    assert (answer.status, answer.json["code"]) == (403, "application_disabled")
    assert hub.published == []
