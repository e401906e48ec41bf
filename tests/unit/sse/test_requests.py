from __future__ import annotations

from typing import Any

import pytest

from fanfare.sse import refusals, requests


def scope(query: str = "channels=a", path: str = "/sse/key", **headers: str) -> dict[str, Any]:
    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "method": "GET", "path": path, "query_string": query.encode(), "headers": named}


def asked(query: str, **headers: str) -> requests.Asked:
    asking = scope(query, **headers)
    return requests.asked(asking, requests.head(asking), max_channel_name=200)


def refusal(query: str) -> str:
    with pytest.raises(refusals.BadRequest) as refused:
        asked(query)
    return refused.value.code


def test_channels_keep_the_order_of_the_url() -> None:
    assert asked("channels=b,a&channel=c%2Cd&channels=e").channels == ("b", "a", "c,d", "e")


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("", "no_channels"),
        ("channels=", "no_channels"),
        ("channels=a,a", "duplicate_channel"),
        ("channels=" + ",".join(f"c{n}" for n in range(17)), "too_many_channels"),
        ("channels=a%20b", "invalid_channel"),
        ("channels=%23server-to-user-1", "invalid_channel"),
        ("channel=", "invalid_channel"),
        ("channels=" + "x" * 201, "invalid_channel"),
        ("channels=presence-room", "presence_channel"),
        ("channels=presence-cache-room", "presence_channel"),
        ("channels=a&rewind=0", "invalid_rewind"),
        ("channels=a&rewind=-1", "invalid_rewind"),
        ("channels=a&rewind=1e3", "invalid_rewind"),
        ("channels=a&x=" + "y" * 17_000, "query_too_long"),
    ],
)
def test_invalid_query_is_refused_with_its_reason(query: str, code: str) -> None:
    assert refusal(query) == code


def test_last_event_id_header_takes_precedence() -> None:
    assert asked("channels=a&last_event_id=query", last_event_id="header").cursor == "header"
    assert asked("channels=a&last_event_id=query").cursor == "query"
    assert asked("channels=a&last_event_id=", last_event_id=" ").cursor is None


def test_earliest_is_a_first_visit() -> None:
    assert not asked("channels=a&last_event_id=earliest").is_back
    assert asked("channels=a&last_event_id=1.e:1").is_back


def test_token_is_taken_from_the_url_or_the_authorization_header() -> None:
    assert asked("channels=a&token=t").token == "t"
    assert asked("channels=a", authorization="Bearer t").token == "t"
    assert asked("channels=a", authorization="Basic t").token is None


@pytest.mark.parametrize("path", ["/sse/", "/sse", "/sse/key/more", "/other/key", "/sse/key/"])
def test_other_path_is_a_404(path: str) -> None:
    with pytest.raises(refusals.NotFound):
        requests.key(scope(path=path))


def test_key_is_found_below_a_root_path() -> None:
    assert requests.key(scope(path="/mount/sse/key") | {"root_path": "/mount"}) == "key"


def test_accept_header_says_whether_the_client_reads_streams() -> None:
    assert requests.head(scope(accept="text/event-stream")).wants_stream
    assert not requests.head(scope(accept="*/*")).wants_stream
