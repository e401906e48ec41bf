"""Paths of the HTTP API, below `/apps/ID/`."""

from __future__ import annotations

from urllib.parse import quote


def channel(name: str) -> str:
    return f"channels/{quote(name, safe='')}"


def stream(channel_name: str, stream_id: str) -> str:
    return f"{channel(channel_name)}/streams/{quote(stream_id, safe='')}"


def user(user_id: str) -> str:
    return f"users/{quote(user_id, safe='')}"
