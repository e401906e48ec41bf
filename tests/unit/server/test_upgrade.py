from __future__ import annotations

import collections
import types

import orjson
import pytest

from fanfare.hub import activity
from fanfare.server import upgrade


@pytest.fixture
def hub():
    counters = collections.Counter()
    return types.SimpleNamespace(
        counters=counters, count=lambda name: counters.update([name]), activity=activity.Activity()
    )


async def ask(hub, path, method="GET", root_path=""):
    sent = []

    async def knows(key):
        return key == "known"

    async def django(scope, receive, send):
        sent.append("django")

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "root_path": root_path, "headers": []}
    await upgrade.UpgradeRequired(django, knows, hub)(scope | {"client": ("192.0.2.7", 1)}, None, send)
    return sent


@pytest.mark.parametrize(
    ("path", "root_path"),
    [("/app/known", ""), ("/any/prefix/app/known", ""), ("/rt/app/known", "/rt"), ("/s/a-token/app/known", "")],
)
async def test_a_websocket_without_its_upgrade_header_gets_426_and_the_cause(hub, path, root_path, caplog):
    start, body = await ask(hub, path, root_path=root_path)
    assert start["status"] == 426
    assert (b"upgrade", b"websocket") in start["headers"]
    answer = orjson.loads(body["body"])
    assert answer["code"] == "upgrade_required"
    assert "proxy" in answer["error"]
    assert hub.counters == {"http.refused.upgrade_required": 1}
    [refusal] = hub.activity.refusals
    assert (refusal["reason"], refusal["address"], refusal["text"]) == (
        "upgrade_required",
        "192.0.2.7",
        answer["error"],
    )
    assert "Connection from 192.0.2.7 refused with 426" in caplog.text


@pytest.mark.parametrize(
    ("path", "method"),
    [("/app/unknown", "GET"), ("/app/known", "POST"), ("/app/known/", "GET"), ("/app/", "GET"), ("/", "GET")],
)
async def test_every_other_request_goes_to_django(hub, path, method):
    assert await ask(hub, path, method) == ["django"]
    assert not hub.counters
