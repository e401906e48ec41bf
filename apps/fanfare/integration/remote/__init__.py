"""Remote mode: this project publishes to another Fanfare deployment, over its signed HTTP API.

With FANFARE_REMOTE_URL, FANFARE_REMOTE_APP_ID, FANFARE_REMOTE_KEY and FANFARE_REMOTE_SECRET, the engine of every
process is a `RemoteEngine`: `publish`, `presence` and `history` work as before, and this project needs no application
in its database, no log and no data folder.
"""
