"""The words of the description that belong to more than one operation."""

from __future__ import annotations

PATH = "/api/openapi.json"

INTRODUCTION = """\
The calls of the Pusher Channels HTTP API: every server SDK for it works here. Beyond it there are `idempotency_key`,
`info=offset`, `history`, `with_user_info` and `reconnect`.

**Signing.** Each request carries in its query `auth_key` (the application's key), `auth_timestamp` (Unix seconds, at
most 600 s from the server's clock), `auth_version` (`1.0`), where there is a body `body_md5` (hexadecimal), and
`auth_signature`: the hexadecimal HMAC-SHA256, with the application's secret, of three lines.

    POST
    /apps/3/events
    auth_key=…&auth_timestamp=…&auth_version=1.0&body_md5=…

The third holds all parameters of the query but the signature, names in lower case and sorted, values not escaped.
After a rotation the old secret is good until its grace period ends.

**Parameters** of a POST stand in its JSON body. They may stand in the query instead, lists as `channels[]=a`. Limits
that are named here are the defaults: each application has its own.

**Browsers.** A page must never hold the secret. It may send a request that its backend has signed: answers can be read
from any origin.

**HEAD** is answered like GET, without the body. **OPTIONS** needs no signature.
"""

REFUSALS = {
    400: "The request cannot be acted on as it is. Nothing was done.",
    401: "Not signed, or not with this application's secret.",
    403: "The application is disabled.",
    404: "There is no such application.",
    408: "The body did not come in time.",
    410: "The history that this position belongs to is no more: it began anew, with another epoch.",
    413: "The body, or an event's data in it, is too large.",
    429: "More events in this second than the application may publish. Nothing was published.",
    500: "The server failed; its log says why.",
    503: "The server cannot work now. Nothing was done: try again.",
}
RETRY_AFTER = {
    "Retry-After": {"description": "Seconds to wait.", "required": True, "schema": {"type": "integer", "minimum": 0}}
}

# Parameters of the query. A request needs all of them.
SIGNATURE = {
    "auth_key": "The application's key.",
    "auth_timestamp": "Unix seconds, at most 600 s from the server's clock.",
    "auth_version": "`1.0`",
    "auth_signature": "The hexadecimal HMAC-SHA256 of what the introduction says.",
}
BODY_SIGNATURE = {"body_md5": "The hexadecimal MD5 of the body."}
