"""Bounds of what a publisher sends beside the event."""

from __future__ import annotations

import pytest

from fanfare.protocol import publications

LONGEST_SOCKET_ID = f"{'1' * 31}.{'2' * 32}"


def test_longest_socket_id_and_idempotency_key_are_accepted() -> None:
    publications.check_socket_id(LONGEST_SOCKET_ID)
    publications.check_idempotency_key("k" * 128)


@pytest.mark.parametrize("socket_id", [f"{LONGEST_SOCKET_ID}2", "1", ""])
def test_socket_id_of_another_form_is_refused(socket_id: str) -> None:
    with pytest.raises(publications.NotPublishable, match=r"has the form 1234\.1234") as refusal:
        publications.check_socket_id(socket_id)
    assert refusal.value.reason == "invalid_socket_id"


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("", "must be 1 to 128 printable ASCII characters"),
        ("é", "must be 1 to 128 printable ASCII characters"),
        ("k" * 129, r"has 129 characters and exceeds the allowed maximum \(128\)"),
    ],
)
def test_idempotency_key_of_another_form_is_refused(key: str, message: str) -> None:
    with pytest.raises(publications.NotPublishable, match=message) as refusal:
        publications.check_idempotency_key(key)
    assert refusal.value.reason == "invalid_idempotency_key"
