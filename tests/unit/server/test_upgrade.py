from __future__ import annotations

import orjson
import pytest

from fanfare.server import upgrade


async def ask(path, method="GET", root_path=""):
    sent = []

    async def knows(key):
        return key == "known"

    async def django(scope, receive, send):
        sent.append("django")

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "root_path": root_path, "headers": []}
    await upgrade.UpgradeRequired(django, knows)(scope, None, send)
    return sent


@pytest.mark.parametrize(
    ("path", "root_path"),
    [("/app/known", ""), ("/any/prefix/app/known", ""), ("/rt/app/known", "/rt"), ("/s/a-token/app/known", "")],
)
async def test_a_websocket_without_its_upgrade_header_gets_426_and_the_cause(path, root_path):
    start, body = await ask(path, root_path=root_path)
    assert start["status"] == 426
    assert (b"upgrade", b"websocket") in start["headers"]
    answer = orjson.loads(body["body"])
    assert answer["code"] == "upgrade_required"
    assert "proxy" in answer["error"]


@pytest.mark.parametrize(
    ("path", "method"),
    [("/app/unknown", "GET"), ("/app/known", "POST"), ("/app/known/", "GET"), ("/app/", "GET"), ("/", "GET")],
)
async def test_every_other_request_goes_to_django(path, method):
    assert await ask(path, method) == ["django"]
