"""Close codes that several layers send. The Pusher protocol defines them (protocol 7, "Error codes").

A client that is closed with 4000 to 4099 stays away until its page calls connect(); with 4100 to 4199 it reconnects
after a second; with 4200 to 4299 at once. `fanfare.protocol.refusals` has the codes that only the protocol sends.
"""

from __future__ import annotations

from typing import Final

UNKNOWN_APPLICATION: Final = 4001
APPLICATION_DISABLED: Final = 4003
OVER_CAPACITY: Final = 4100
RECONNECT: Final = 4200
