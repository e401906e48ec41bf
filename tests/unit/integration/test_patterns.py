from __future__ import annotations

import uuid
from typing import Any

import pytest

from fanfare import errors
from fanfare.integration import rules

ID = uuid.UUID("8d8c9f3e-2a43-4a35-9b39-7e0a5a2b9c11")


@pytest.mark.parametrize(
    ("pattern", "channel", "parameters"),
    [
        ("private-news", "private-news", {}),
        ("private-orders-{order_id:int}", "private-orders-42", {"order_id": 42}),
        ("private-orders-{order_id:int}", "private-orders-0", {"order_id": 0}),
        ("presence-room-{room}", "presence-room-a_b=c@d,e.f;g", {"room": "a_b=c@d,e.f;g"}),
        ("presence-team-{team:slug}", "presence-team-front-end_2", {"team": "front-end_2"}),
        ("private-file-{file:uuid}", f"private-file-{ID}", {"file": ID}),
        ("private-{team:slug}-{file:uuid}", f"private-a-b-{ID}", {"team": "a-b", "file": ID}),
        ("private-{org}-room-{room:int}", "private-acme-room-7", {"org": "acme", "room": 7}),
        ("private-v1.2-{name}", "private-v1.2-x", {"name": "x"}),
    ],
)
def test_matching_name_gives_the_parameters(pattern: str, channel: str, parameters: dict[str, Any]) -> None:
    assert rules.Pattern(pattern).match(channel) == parameters


@pytest.mark.parametrize(
    ("pattern", "channel"),
    [
        ("private-news", "private-newspaper"),
        ("private-news", "xprivate-news"),
        ("private-news", "private-news\n"),
        ("private-v1.2-{name}", "private-v1x2-a"),
        ("private-orders-{order_id:int}", "private-orders-"),
        ("private-orders-{order_id:int}", "private-orders--1"),
        ("private-orders-{order_id:int}", "private-orders-007"),
        ("private-orders-{order_id:int}", "private-orders-٣"),
        ("private-orders-{order_id:int}", "private-orders-1234567890123456789"),
        ("presence-room-{room}", "presence-room-a-b"),
        ("presence-team-{team:slug}", "presence-team-a.b"),
        ("private-file-{file:uuid}", f"private-file-{str(ID).upper()}"),
        ("private-file-{file:uuid}", f"private-file-{ID.hex}"),
        ("private-{name:slug}", "private-encrypted-a"),
        ("private-{kind}-{name}", "private-encrypted-a"),
    ],
)
def test_name_that_differs_does_not_match(pattern: str, channel: str) -> None:
    assert rules.Pattern(pattern).match(channel) is None


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("news", "Any visitor may join"),
        ("private", "Any visitor may join"),
        ("private-{}", "write {name}"),
        ("private-{1st}", "write {name}"),
        ("private-{a}-{a}", "twice"),
        ("private-{a:float}", "the types are int, slug, uuid"),
        ("private-{a", "cannot be part"),
        ("private-a b", "cannot be part"),
        ("private-o-<int:id>", "write 'private-o-{id:int}'"),
        ("private-o-<id>", "write 'private-o-{id}'"),
        ("private-o-<str:id>", "write 'private-o-{id}'"),
        ("private-o-*", "write 'private-o-{name:slug}'"),
        ("private-o-{int:id}", "Write {id:int}"),
        ("private-{a}{b}", "'-' between"),
        ("private-{a}x{b}", "'-' between"),
        ("private-{a:slug}-{b:slug}", "more than one slug"),
    ],
)
def test_wrong_pattern_is_refused_with_the_remedy(pattern: str, reason: str) -> None:
    with pytest.raises(errors.InvalidPattern, match=reason) as caught:
        rules.Pattern(pattern)
    assert pattern in str(caught.value)
