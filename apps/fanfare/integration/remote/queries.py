"""Queries of the deployment: channels, members, histories and streams."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import orjson

from fanfare.engine import interface
from fanfare.hub import event_frames
from fanfare.integration.remote import paths, refusals, streams
from fanfare.protocol import names

HISTORY_PAGE = 500  # events per request: the maximum of the API


class RemoteQueries(interface.Queries):
    """See `interface.Queries`."""

    def __init__(self, get: Callable[..., Any]) -> None:
        """`get(path, **query)` returns the JSON of a GET below `/apps/ID/`."""
        self._get = get

    def channels(self, app: str, prefix: str = "") -> dict[str, interface.ChannelCounts]:
        found = self._get("channels", filter_by_prefix=prefix, info=_counts(prefix))["channels"]
        return {name: _channel_counts(counts) for name, counts in found.items()}

    def channel(self, app: str, channel: str) -> interface.ChannelCounts:
        return _channel_counts(self._get(paths.channel(channel), info=_counts(channel)))

    def members(self, app: str, channel: str, limit: int | None = None) -> list[interface.Member]:
        users = self._get(f"{paths.channel(channel)}/users", with_user_info="1")["users"][:limit]
        return [interface.Member(user["id"], orjson.dumps(user.get("user_info")).decode()) for user in users]

    def present(self, app: str, channel: str, user_ids: Sequence[str]) -> set[str]:
        if channel != interface.USERS:
            return {member.user_id for member in self.members(app, channel)}.intersection(user_ids)
        return {user_id for user_id in user_ids if self._get(paths.user(user_id))["online"]}

    def cached(self, app: str, channel: str) -> interface.Cached | None:
        cached = self._get(paths.channel(channel), info="cache")["cache"]
        if cached is None:
            return None
        return interface.Cached(
            event_frames.event("", channel, cached["data"]), cached["ttl"]
        )  # the API does not return the event name

    def stream(self, app: str, channel: str, stream_id: str) -> interface.Streamed | None:
        """The stream as far as the API describes it: a producer needs its text, state and number."""
        found = self._get(paths.stream(channel, stream_id))
        receipt = streams.receipt(found, done=False)
        if receipt.state is None:
            return None
        parts = tuple(text.encode() for text in (found["pieces"] if "pieces" in found else [found["text"]]))
        return interface.Streamed(stream_id, receipt.state, receipt.seq, receipt.size, b"{}", parts)

    def read(
        self,
        app: str,
        channel: str,
        after: int,
        limit: int,
        *,
        before: int | None = None,
        newest_first: bool = False,
        max_bytes: int | None = None,
    ) -> tuple[list[interface.Entry], interface.Position | None]:
        """Supports only `newest_first` without `after`, as `history.events` calls it."""
        entries: list[interface.Entry] = []
        query = {"direction": "backwards"}
        position = None
        if before is not None:
            top = self._history(channel, {**query, "limit": "1"})
            if top is None or top["position"] is None:
                return [], None
            epoch, _, _ = top["position"].partition(":")
            query["before"] = f"{epoch}:{before}"
        while len(entries) < limit:
            page = self._history(channel, {**query, "limit": str(min(limit - len(entries), HISTORY_PAGE))})
            if page is None:
                break
            position = position or page["position"]
            entries += [_entry(app, channel, item) for item in page["items"]]
            if page["next"] is None:
                break
            query["before"] = page["next"]
        return entries, None if position is None else position_of(position)

    def _history(self, channel: str, query: dict[str, str]) -> Any:
        """A page of the history; None if the channel keeps none."""
        try:
            return self._get(f"{paths.channel(channel)}/history", **query)
        except refusals.NoHistory:
            return None


def _counts(channel: str) -> str:
    return "subscription_count,user_count" if names.is_presence(channel) else "subscription_count"


def _channel_counts(counts: dict[str, Any]) -> interface.ChannelCounts:
    return interface.ChannelCounts(counts.get("subscription_count", 0), counts.get("user_count", 0))


def _entry(app: str, channel: str, item: dict[str, Any]) -> interface.Entry:
    user_id = item.get("user_id")
    kind = interface.Kind.EVENT if user_id is None else interface.Kind.CLIENT_EVENT
    body = event_frames.event(item["event"], channel, item["data"], user_id)
    return interface.Entry(0, kind, app, channel, item["offset"], user_id, None, body)


def position_of(text: str) -> interface.Position:
    epoch, _, offset = text.partition(":")
    return interface.Position(epoch, int(offset))
