"""Which channels somebody on this worker hears, kept where SQLite can look them up while it reads the log.

Every worker reads every entry, and of most of them it has no subscriber. A row that becomes Python objects costs 0.7
µs, and gives the interpreter's lock away, which a publishing thread then takes; one that SQLite steps over costs 0.15
µs and does not. Each entry is read by each worker, so this counts as many times as there are workers.
"""

from __future__ import annotations

import sqlite3

_TABLE = """
CREATE TEMP TABLE heard (
    app TEXT NOT NULL,
    channel TEXT NOT NULL,
    PRIMARY KEY (app, channel)
) WITHOUT ROWID
"""

# As a condition on a row of the log.
IS_HEARD = "EXISTS (SELECT 1 FROM temp.heard WHERE heard.app = log.app AND heard.channel = log.channel)"


class Heard:
    """A change is in force for every read that begins after it."""

    def __init__(self) -> None:
        self._subscribed: set[tuple[str, str]] = set()
        self._listening: set[tuple[str, str]] = set()
        self._changed: set[tuple[str, str]] = set()  # since `update`

    def subscribe(self, app: str, channel: str, on: bool) -> None:
        self._set(self._subscribed, (app, channel), on)

    def listen(self, app: str, channel: str, on: bool) -> None:
        self._set(self._listening, (app, channel), on)

    def _set(self, channels: set[tuple[str, str]], key: tuple[str, str], on: bool) -> None:
        if on is not (key in channels):
            (channels.add if on else channels.discard)(key)
            self._changed.add(key)

    def open(self, connection: sqlite3.Connection) -> None:
        """Raises sqlite3.Error, as `update` does."""
        connection.execute("PRAGMA temp_store=MEMORY")
        connection.execute(_TABLE)
        self._changed = self._subscribed | self._listening
        self.update(connection)

    def update(self, connection: sqlite3.Connection) -> None:
        if not self._changed:
            return
        came = {key for key in self._changed if key in self._subscribed or key in self._listening}
        connection.executemany("INSERT OR IGNORE INTO temp.heard VALUES (?, ?)", came)
        connection.executemany("DELETE FROM temp.heard WHERE app = ? AND channel = ?", self._changed - came)
        self._changed.clear()
