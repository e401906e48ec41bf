"""GET users/…, and POST users/…/terminate_connections under its own path and where the Python library sends it."""

from __future__ import annotations

import dataclasses
import json

import pytest

from fanfare.applications import registry
from fanfare.engine import interface
from fanfare.protocol import termination
from tests.unit.api import fakes


async def test_signed_in_user_is_online(client: fakes.Client, hub: fakes.Hub) -> None:
    hub.engine.joined = {interface.USERS: [interface.Member("a/b", "null")]}
    answers = {name: await client.ask("GET", f"/apps/3/users/{name}") for name in ("a%2Fb", "ann")}
    assert {name: (answer.status, answer.json) for name, answer in answers.items()} == {
        "a%2Fb": (200, {"online": True}),
        "ann": (200, {"online": False}),
    }


async def test_user_query_with_an_unavailable_engine_is_a_503(client: fakes.Client, hub: fakes.Hub) -> None:
    hub.engine.down = "the log cannot be read"
    assert (await client.ask("GET", "/apps/3/users/ann")).status == 503


@pytest.mark.parametrize("prefix", ["/apps/3", ""])
@pytest.mark.parametrize(
    ("query", "code"), [({}, 4009), ({"reconnect": "0"}, 4009), ({"reconnect": "1"}, 4200)], ids=["", "0", "1"]
)
async def test_terminate_publishes_a_command_for_every_worker(
    client: fakes.Client, hub: fakes.Hub, prefix: str, query: dict[str, str], code: int
) -> None:
    answer = await client.ask("POST", f"{prefix}/users/ann/terminate_connections", query=query)
    assert (answer.status, answer.body) == (200, b"{}")
    (command,) = hub.commands
    assert (command.app, command.channel) == ("3", termination.COMMAND)
    argument = json.loads(command.body)
    assert (argument["user_id"], argument["code"]) == ("ann", code)


async def test_terminate_keeps_a_record_unless_clients_are_to_reconnect(client: fakes.Client, hub: fakes.Hub) -> None:
    await client.ask("POST", "/apps/3/users/ann/terminate_connections", query={"reconnect": "1"})
    assert len(hub.published[0]) == 1
    await client.ask("POST", "/apps/3/users/ann/terminate_connections")
    record, command = hub.published[1]
    assert record.channel == f"{termination.RECORD_PREFIX}ann"
    assert record.retention == interface.Retention(1, termination.RECORD_SECONDS)
    assert json.loads(record.body)["at"] == json.loads(command.body)["at"]


@pytest.mark.parametrize(
    ("sent", "user_id"), [("ann@example.org", "ann@example.org"), ("a%2Fb", "a/b"), ("%C3%A4", "ä"), ("a%20b", "a b")]
)
async def test_user_id_may_have_any_characters(client: fakes.Client, hub: fakes.Hub, sent: str, user_id: str) -> None:
    answer = await client.ask("POST", f"/apps/3/users/{sent}/terminate_connections")
    assert answer.status == 200
    assert json.loads(hub.commands[0].body)["user_id"] == user_id


async def test_user_id_with_a_nul_is_refused(client: fakes.Client) -> None:
    answer = await client.ask("POST", "/apps/3/users/4%002/terminate_connections")
    assert (answer.status, answer.json["code"]) == (400, "invalid_user_id")


async def test_user_id_over_the_limit_is_refused_with_both_numbers(client: fakes.Client, hub: fakes.Hub) -> None:
    limit = fakes.APPLICATION.limits.max_user_id
    assert (await client.ask("POST", f"/apps/3/users/{'x' * limit}/terminate_connections")).status == 200
    answer = await client.ask("POST", f"/apps/3/users/{'x' * (limit + 1)}/terminate_connections")
    assert (answer.status, answer.json["code"]) == (400, "invalid_user_id")
    assert str(limit) in answer.json["error"]
    assert str(limit + 1) in answer.json["error"]
    assert len(hub.published) == 1


async def test_reconnect_is_a_switch(client: fakes.Client, hub: fakes.Hub) -> None:
    answer = await client.ask("POST", "/users/ann/terminate_connections", query={"reconnect": "soon"})
    assert (answer.status, answer.json["code"]) == (400, "invalid_flag")
    assert hub.published == []


async def test_terminate_does_not_count_against_the_event_budget(
    client: fakes.Client, hub: fakes.Hub, applications: registry.Registry
) -> None:
    applications.put(dataclasses.replace(fakes.APPLICATION, limits=registry.Limits(max_events_per_second=1)))
    for _ in range(3):
        assert (await client.ask("POST", "/apps/3/users/ann/terminate_connections")).status == 200


@pytest.mark.parametrize(
    ("changed", "code"),
    [({"auth_key": None}, "missing_parameter"), ({"auth_key": "x"}, "invalid_key")],
    ids=["no key", "unknown key"],
)
async def test_route_without_app_id_needs_a_known_key(
    client: fakes.Client, hub: fakes.Hub, changed: dict[str, str | None], code: str
) -> None:
    answer = await client.ask("POST", "/users/ann/terminate_connections", **changed)
    assert (answer.status, answer.json["code"]) == (401, code)
    assert hub.published == []


async def test_application_terminates_only_its_own_users(
    client: fakes.Client, hub: fakes.Hub, applications: registry.Registry
) -> None:
    applications.put(registry.Application(id="4", key="other-key", secret="other-secret"))
    answer = await client.ask("POST", "/users/ann/terminate_connections", auth_key="other-key")
    assert (answer.status, answer.json["code"]) == (401, "invalid_signature")
    assert hub.published == []


async def test_unavailable_engine_is_a_503(client: fakes.Client, hub: fakes.Hub) -> None:
    hub.engine.down = "the disk is full"
    answer = await client.ask("POST", "/apps/3/users/ann/terminate_connections")
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
