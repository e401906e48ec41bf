"""The signed-in users of this worker's connections, and the connections that watch a user.

The engine knows which users are online in the whole deployment: a signed-in connection is a member of the channel
USERS, so a user going online is a MEMBER_ADDED entry of it, and one going offline a MEMBER_REMOVED.
"""

from __future__ import annotations

from collections.abc import Sequence

from fanfare.engine import interface
from fanfare.hub import connections, event_frames

Users = dict[tuple[str, str], dict[connections.Connection, None]]  # by application and user


class Directory:
    """The connections of each user, and those that watch it."""

    def __init__(self) -> None:
        self._signed_in: Users = {}
        self._watching: Users = {}

    def add(self, connection: connections.Connection, user_id: str, watchlist: Sequence[str]) -> None:
        connection.user_id = user_id
        connection.watchlist = tuple(watchlist)
        self._signed_in.setdefault((connection.app, user_id), {})[connection] = None
        for watched in connection.watchlist:
            self._watching.setdefault((connection.app, watched), {})[connection] = None

    def remove(self, connection: connections.Connection) -> bool:
        """Returns whether it was signed in."""
        if connection.user_id is None:
            return False
        _discard(self._signed_in, (connection.app, connection.user_id), connection)
        for watched in connection.watchlist:
            _discard(self._watching, (connection.app, watched), connection)
        connection.user_id, connection.watchlist = None, ()
        return True

    def connections_of(self, app: str, user_id: str) -> list[connections.Connection]:
        return list(self._signed_in.get((app, user_id), ()))

    def report(self, entry: interface.Entry) -> None:
        """Send an entry of USERS to the connections that watch this user."""
        user_id = entry.user_id or ""
        watching = self._watching.get((entry.app, user_id))
        if watching:
            states = {"online": [user_id]} if entry.kind == interface.Kind.MEMBER_ADDED else {"offline": [user_id]}
            frame = event_frames.watchlist_events(**states)
            for connection in list(watching):
                connection.send(frame)


def _discard(users: Users, key: tuple[str, str], connection: connections.Connection) -> None:
    mine = users[key]
    del mine[connection]
    if not mine:
        del users[key]
