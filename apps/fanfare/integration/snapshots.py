"""Snapshots: a page whose subscription starts at the state of its database query.

    from fanfare import snapshot

    def orders(request):
        with snapshot("orders") as positions:
            rows = list(Order.objects.all())
        return render(request, "orders.html", {"rows": rows, "positions": positions})

    {% fanfare_client since=positions %}

The channel's position is read before the database and is part of the page. The client's subscription starts at this
position, so a change between the rendering and the subscription is delivered. A change that the rows already contain
may be delivered as well; a handler that sets the new value is correct in both cases.
"""

from __future__ import annotations

from types import TracebackType
from typing import TypedDict

from fanfare import conf, errors
from fanfare.applications import registry
from fanfare.engine import interface
from fanfare.integration import queries, target

__all__ = ["Position", "Positions", "snapshot"]


class Position(TypedDict):
    """A place in a channel's stream, as JSON. Offsets of different epochs are not comparable."""

    epoch: str
    offset: int


Positions = dict[str, Position]
"""By channel. It can be rendered as JSON, for a REST response."""

# A channel that never kept an event has no epoch. When it keeps one, the server answers this position with
# `epoch_changed`, and the page loads its data again.
NOTHING_KEPT = Position(epoch="0", offset=0)


class snapshot:  # noqa: N801  (used like a function)
    """The positions of channels, for pages that are rendered inside of the block: `with` in a view, `async with` in a
    coroutine.

    `channels`: names of channels that keep a history. `app`: an application or its id, by default the project's default
    application.

    Raises InvalidName if a channel keeps no history, NoApplication, EngineUnavailable, CalledOnEventLoop.
    """

    def __init__(self, *channels: str, app: target.App = None) -> None:
        if not channels:
            raise errors.InvalidName('snapshot() needs the names of channels: snapshot("orders").')
        self._channels = channels
        self._app = app

    def __enter__(self) -> Positions:
        return queries.ask("snapshot", self._app, self._query)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The positions stay valid after the block."""

    async def __aenter__(self) -> Positions:
        return await queries.aask(self._app, self._query)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The positions stay valid after the block."""

    def _query(self, application: registry.Application) -> queries.Query[Positions]:
        for channel in self._channels:
            queries.check_channel(channel, application.limits)
            # In remote mode only the other deployment knows the channel rules.
            if not conf.settings.REMOTE_URL and application.rules.of(channel) is None:
                raise errors.InvalidName(
                    f"The channel {channel!r} keeps no history, so it has no position: add a channel rule for it in "
                    "the admin, or with `createapplication --history`."
                )

        def query(ask: interface.Queries) -> Positions:
            found = {channel: ask.read(application.id, channel, 0, 1, newest_first=True) for channel in self._channels}
            return {
                channel: NOTHING_KEPT if top is None else Position(epoch=top.epoch, offset=top.offset)
                for channel, (_, top) in found.items()
            }

        return query
