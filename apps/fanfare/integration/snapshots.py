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

from asgiref.sync import sync_to_async

from fanfare import conf, errors
from fanfare.applications import registry
from fanfare.integration import publishing, queries, target

__all__ = ["Position", "Positions", "snapshot"]


class Position(TypedDict):
    """A position in a channel's history, as JSON. Offsets of different epochs are not comparable."""

    epoch: str
    offset: int


Positions = dict[str, Position]
"""By channel. It can be rendered as JSON, for a REST response."""


class snapshot:  # noqa: N801  (used like a function)
    """The positions of channels, for pages that are rendered inside the block: `with` in a view, `async with` in a
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
        publishing.refuse_event_loop("with snapshot", "async with snapshot")
        return self._positions(self._checked())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The positions stay valid after the block."""

    async def __aenter__(self) -> Positions:
        application = await sync_to_async(self._checked)()  # the database, in this context's thread
        return await sync_to_async(self._positions, thread_sensitive=False)(application)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The positions stay valid after the block."""

    def _checked(self) -> registry.Application:
        application = target.application(self._app)
        for channel in self._channels:
            queries.check_channel(channel, application.limits)
            # In remote mode only the other deployment knows the channel rules.
            if not conf.settings.REMOTE_URL and application.rules.of(channel) is None:
                raise errors.InvalidName(
                    f"The channel {channel!r} keeps no history, so it has no position: add a channel rule for it in "
                    "the admin, or with `createapplication --history`."
                )
        return application

    def _positions(self, application: registry.Application) -> Positions:
        """A channel that never kept an event gets its position now, so the page's subscription starts there, too."""
        engine = target.engine()
        found: Positions = {}
        with engine.queries() as asked:
            for channel in self._channels:
                _, top = asked.read(application.id, channel, 0, 1, newest_first=True)
                if top is None:
                    top = engine.open_channel(application.id, channel)
                found[channel] = Position(epoch=top.epoch, offset=top.offset)
        return found
