"""Whatever comes: an answer below 500, and nothing published that was not signed."""

from __future__ import annotations

import json
from typing import Any, cast

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fanfare.api import asgi
from fanfare.applications import registry
from fanfare.hub import hub as hubs
from tests.unit.api import fakes

quick = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
names = st.sampled_from(["news", "presence-a", "private-encrypted-b", "#server-to-user-1", "#x", "a b", "", "x" * 201])
fields = st.fixed_dictionaries(
    {},
    optional={
        "name": st.text(max_size=5) | json_values,
        "data": json_values,
        "channel": names | json_values,
        "channels": st.lists(names, max_size=4) | json_values,
        "socket_id": st.sampled_from(["1.2", "1", "1.2\n"]) | json_values,
        "info": st.sampled_from(["user_count", "user_count,subscription_count", ",", "x"]) | json_values,
        "idempotency_key": st.text(max_size=5) | json_values,
        "batch": json_values,
    },
)


def make() -> tuple[fakes.Hub, fakes.Client]:
    hub = fakes.Hub()
    applications = registry.Registry()
    applications.put(fakes.APPLICATION)
    return hub, fakes.Client(asgi.Api(cast("hubs.Hub", hub), applications, now=lambda: fakes.NOW))


@quick
@given(body=fields, route=st.sampled_from(["events", "batch_events"]), in_batch=st.booleans())
async def test_signed_post_of_any_json_is_answered_below_500(body: Any, route: str, in_batch: bool) -> None:
    hub, client = make()
    answer = await client.post(route, {"batch": [body, body]} if in_batch else body)
    assert answer.status in {200, 400, 413}
    assert isinstance(answer.json, dict)
    assert (answer.status == 200) or hub.published == []


@quick
@given(body=st.binary(max_size=200))
async def test_signed_post_of_any_bytes_is_answered_below_500(body: bytes) -> None:
    _, client = make()
    assert (await client.post("events", body)).status in {200, 400}


@quick
@given(
    method=st.sampled_from(["GET", "POST", "HEAD", "OPTIONS", "X"]),
    segments=st.lists(
        st.sampled_from(["apps", "3", "events", "channels", "users", "%", "%zz", "", "a%2Fb", "é"]), max_size=7
    ),
    query=st.binary(max_size=80) | st.text(alphabet="auth_keysignr=&%+[]0123", max_size=60).map(str.encode),
    body=st.binary(max_size=20),
)
async def test_unsigned_request_of_any_shape_publishes_nothing(
    method: str, segments: list[str], query: bytes, body: bytes
) -> None:
    hub, client = make()
    target = "/" + "/".join(segments) + "?" + query.decode("utf-8", "surrogateescape")
    answer = await client.request(method, target, body)
    assert answer is not None
    assert answer.status in {204, 400, 401, 404, 405}
    assert hub.published == []


@quick
@given(data=st.data())
async def test_changed_signed_request_publishes_nothing_else(data: st.DataObject) -> None:
    """A change may be without meaning, as the case of an MD5 is; then what was signed is published, and only that."""
    hub, client = make()
    body = json.dumps({"name": "created", "channel": "news", "data": "x"}).encode()
    target = fakes.signed("POST", "/apps/3/events", body)
    if data.draw(st.booleans(), "change the body"):
        place = data.draw(st.integers(0, len(body) - 1))
        body = body[:place] + bytes([data.draw(st.integers(0, 255))]) + body[place + 1 :]
    else:
        place = data.draw(st.integers(1, len(target) - 1))
        target = target[:place] + data.draw(st.characters(min_codepoint=33, max_codepoint=126)) + target[place + 1 :]
    answer = await client.request("POST", target, body)
    assert answer is not None
    assert answer.status in {200, 401, 404, 405}
    assert hub.frames in ([], [{"event": "created", "channel": "news", "data": "x"}])
