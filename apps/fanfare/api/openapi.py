"""The OpenAPI 3.1 description of the HTTP API, and the ASGI application that serves it.

The description is data: one entry for each route of `fanfare.api.operations`, and the schemas that they refer to. The
API itself does not read it; `tests/unit/api/test_description.py` compares all routes, parameters, statuses and answers.
Schemas contain only bounds that apply to every application. Limits that an admin can change are in the texts.
"""

from __future__ import annotations

import functools
from typing import Any

import orjson

from fanfare import conf
from fanfare.api import members, operations, parameters, queries, requests, streams
from fanfare.applications import registry
from fanfare.engine import interface
from fanfare.hub import history_pages
from fanfare.protocol import capabilities, publications

Schema = dict[str, Any]

PATH = "/api/openapi.json"
VERSION = "1.0"  # of the signing scheme, `auth_version`
LIMITS = registry.Limits()

# The rules of fanfare.protocol.names and fanfare.api.parameters, as regular expressions of JSON Schema.
CHANNEL_PATTERN = r"^(#server-to-user-)?[-A-Za-z0-9_=@,.;]+$"
PRESENCE_PATTERN = r"^presence-[-A-Za-z0-9_=@,.;]*$"
RESERVED_PATTERN = r"^pusher(_internal)?:"
SOCKET_ID_PATTERN = r"^[0-9]+\.[0-9]+$"
POSITION_PATTERN = r"^[0-9A-Za-z]{1,64}:(0|[1-9][0-9]{0,17})$"
IDEMPOTENCY_KEY_PATTERN = r"^[ -~]+$"

INTRODUCTION = """\
The calls of the Pusher Channels HTTP API: every server SDK for it works here. Extensions are `idempotency_key`,
`info=offset`, `history`, `streams`, `with_user_info` and `reconnect`.

**Signing.** The query of each request has `auth_key` (the application's key), `auth_timestamp` (Unix seconds, at
most 600 s from the server's clock), `auth_version` (`1.0`), with a body `body_md5` (hexadecimal), and
`auth_signature`: the hexadecimal HMAC-SHA256, with the application's secret, of three lines.

    POST
    /apps/3/events
    auth_key=…&auth_timestamp=…&auth_version=1.0&body_md5=…

The third line has all parameters of the query except the signature, names in lower case and sorted, values not
escaped. After a rotation the previous secret is valid until its grace period ends.

**Parameters** of a POST are in its JSON body. They can be in the query instead, lists as `channels[]=a`. The limits in
this document are the defaults: each application has its own.

**Browsers.** A page must never have the secret. It may send a request that its backend has signed; pages of any origin
can read the answers.

**HEAD** is answered like GET, without the body. **OPTIONS** needs no signature.
"""

# Query parameters; a request needs all of them.
SIGNATURE = {
    "auth_key": "The application's key.",
    "auth_timestamp": "Unix seconds, at most 600 s from the server's clock.",
    "auth_version": "`1.0`",
    "auth_signature": "The hexadecimal HMAC-SHA256 that the introduction describes.",
}
BODY_SIGNATURE = {"body_md5": "The hexadecimal MD5 of the body."}

REFUSALS = {
    400: "The request cannot be carried out as it is. Nothing was done.",
    401: "Not signed, or not with this application's secret.",
    403: "The application is disabled.",
    404: "There is no such application.",
    408: "The body did not arrive in time.",
    410: "The history was reset: the position belongs to another epoch.",
    413: "The body, or the data of an event in it, is too large.",
    429: "More events, or appends to a stream, than are allowed in this second. Nothing was published.",
    500: "The server failed; its log says why.",
    503: "The server is unavailable. Nothing was done: try again.",
}
COMMON = (400, 401, 403, 404, 408, 413, 500, 503)
PUBLISHING = (*COMMON, 429)
RETRY_AFTER = {
    "Retry-After": {"description": "Seconds to wait.", "required": True, "schema": {"type": "integer", "minimum": 0}}
}


# -- building blocks ---------------------------------------------------------------------------------------------------


def _reference(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _text(description: str = "", **keywords: Any) -> Schema:
    return {"type": "string", **({"description": description} if description else {}), **keywords}


def _integer(description: str, **keywords: Any) -> Schema:
    return {"type": "integer", "description": description, **keywords}


def _list(items: Schema, description: str, **keywords: Any) -> Schema:
    return {"type": "array", "items": items, "description": description, **keywords}


def _by_name(values: Schema) -> Schema:
    return {"type": "object", "additionalProperties": values, "description": "By name."}


def _or_null(schema: Schema, description: str) -> Schema:
    return {"anyOf": [schema, {"type": "null"}], "description": description}


def _info(attributes: tuple[str, ...], description: str) -> Schema:
    one = f"({'|'.join(attributes)})"
    return _text(description, pattern=f"^{one}(,{one})*$", examples=["subscription_count"])


def _object(description: str, required: Schema, optional: Schema | None = None, **keywords: Any) -> Schema:
    """A schema of an object. `required`, `optional`: its fields by name."""
    fields = {name: {"title": _title(name), **schema} for name, schema in {**required, **(optional or {})}.items()}
    schema: Schema = {"type": "object", "description": description, "properties": fields, **keywords}
    if required:
        schema["required"] = list(required)
    return schema


def _answer(description: str, required: Schema, optional: Schema | None = None) -> Schema:
    """A schema of an object in a response: it has no other fields."""
    return _object(description, required, optional, additionalProperties=False)


def _title(name: str) -> str:
    return name.replace("_", " ").title()


def _parameter(where: str, name: str, schema: Schema, *, required: bool) -> Schema:
    parameter = {"name": name, "in": where, "required": required, "schema": {"title": _title(name), **schema}}
    if "description" in schema:
        parameter["description"] = schema["description"]
    return parameter


# -- values ------------------------------------------------------------------------------------------------------------

APP_ID = _text(pattern="^[0-9]+$", examples=["3"])
CHANNEL_NAME = _text(
    f"At most {LIMITS.max_channel_name} characters. `#server-to-user-ID` is the channel of one user.",
    pattern=CHANNEL_PATTERN,
    examples=["orders"],
)
PRESENCE_CHANNEL = _text(pattern=PRESENCE_PATTERN, examples=["presence-room"])
EVENT_NAME = {
    **_text(
        f"At most {LIMITS.max_event_name} characters. "
        "Names that start with `pusher:` or `pusher_internal:` are reserved.",
        minLength=1,
        examples=["created"],
    ),
    "not": {"pattern": RESERVED_PATTERN},
}
DATA: Schema = {
    "description": f"The data for subscribers, at most {LIMITS.max_event_bytes} bytes of UTF-8. "
    "A string is sent as it is, other values as their JSON text.",
    "examples": ['{"id":7}'],
}
SOCKET_ID = _text(
    "The connection that does not get the event: usually that of the client that caused it.",
    pattern=SOCKET_ID_PATTERN,
    maxLength=publications.MAX_SOCKET_ID,
    examples=["1234.5678"],
)
IDEMPOTENCY_KEY = _text(
    "Events with the same key for the same channel are published once in ten minutes.",
    pattern=IDEMPOTENCY_KEY_PATTERN,
    maxLength=interface.MAX_IDEMPOTENCY_KEY,
    examples=["order-7-created"],
)
POSITION = _text(
    "A position in the channel's history, from an earlier answer. Not included.",
    pattern=POSITION_PATTERN,
    examples=["aZ3kP0Qx:57"],
)
USER_ID = _text(f"At most {LIMITS.max_user_id} characters.", minLength=1, examples=["42"])
WITH_USER_INFO = _text("`1`: with the `user_info` of each user.", enum=["0", "1"])
TOKEN_ID = _text("The token's claim `jti`.", pattern="^[A-Za-z0-9_.:~-]{1,128}$", examples=["5d41402abc4b"])
TOKEN_EXPIRY = _integer("Unix time at which the token ends.", minimum=1, maximum=capabilities.LATEST)
RECONNECT = _text("`1`: clients reconnect at once (4200); otherwise they do not (4009).", enum=["0", "1"])
PREFIX = _text("Only channels whose name starts with it.")
DIRECTION = _text("The newest first, or the oldest first.", enum=list(queries.DIRECTIONS))
OPEN = _text("`1`: a channel that never kept an event gets its position now.", enum=["0", "1"])
PAGE_SIZE = _integer("Events of a page.", minimum=1, maximum=history_pages.MOST)

COUNTS = {
    "user_count": _integer("Distinct users in the whole deployment. Presence channels only."),
    "subscription_count": _integer("Connections in the whole deployment."),
}
OCCUPIED = {"type": "boolean", "description": "Whether the channel has subscribers."}

PUBLICATION_INFO = _info(
    parameters.PUBLICATION_ATTRIBUTES,
    "Attributes of each channel to return: any of `user_count`, `subscription_count` and `offset`, separated by "
    "commas. An attribute that a channel does not have is left out.",
)
CHANNELS_INFO = _info(
    parameters.COUNTS,
    "`subscription_count`, and with a `filter_by_prefix` that begins with `presence-` also `user_count`, separated by "
    "commas.",
)
CHANNEL_INFO = _info(
    parameters.CHANNEL_ATTRIBUTES,
    "`subscription_count`, for a presence channel `user_count`, for a cache channel `cache`, separated by commas.",
)
EVENT_FIELDS = {"socket_id": SOCKET_ID, "info": PUBLICATION_INFO, "idempotency_key": IDEMPOTENCY_KEY}


STREAM_LENGTH = f"{conf.Settings.STREAM_MAX_LENGTH.default:,}"
STREAM_ID = _text(
    "1 to 100 letters, digits or `_ - = @ , . ; :`. By default a random one.",
    pattern=r"^[-A-Za-z0-9_=@,.;:]{1,100}$",
    examples=["answer-7"],
)
ENCRYPTED = _text("On encrypted channels, in place of `text`: the encrypted data of the event.")
TOKEN_NUMBER = _integer("The number of the newest token in `text`.", minimum=0)
APPEND_FIELDS = {
    "after": _integer(
        "The stream's number before it. By default `seq` - 1, and `seq` without `text`; with an empty `text`, either.",
        minimum=0,
    ),
    "text": _text(f"The stream may have {STREAM_LENGTH} UTF-16 code units."),
    "at": _integer("0: the text replaces that of the stream.", minimum=0),
    "state": _text("Ends the stream.", enum=list(streams.FINAL)),
    "error": _text("For readers, with the state `failed`."),
    "data": ENCRYPTED,
    "length": _integer("Of the whole text afterwards, in UTF-16 code units. With `data` only.", minimum=0),
}
STREAM = {
    "id": _text(),
    "state": _or_null(_text(enum=["open", *streams.FINAL]), "`null`: there is no such stream."),
    "seq": _integer("The number of its newest token."),
    "length": _integer("Of its text, in UTF-16 code units."),
}


# -- schemas -----------------------------------------------------------------------------------------------------------

SCHEMAS: dict[str, Schema] = {
    "Event": _object(
        "One event, for one or several channels.",
        {"name": EVENT_NAME, "data": DATA},
        {
            **EVENT_FIELDS,
            "channels": _list(
                CHANNEL_NAME,
                f"At most {LIMITS.max_channels_per_event}. "
                "A channel that begins with `private-encrypted-` must be the only one.",
                minItems=1,
            ),
            "channel": CHANNEL_NAME,
        },
        oneOf=[{"required": ["channels"]}, {"required": ["channel"]}],
        examples=[{"name": "created", "channels": ["orders", "shop-7"], "data": '{"id":7}'}],
    ),
    "BatchEvent": _object(
        "One event of a batch, for one channel.",
        {"name": EVENT_NAME, "data": DATA, "channel": CHANNEL_NAME},
        EVENT_FIELDS,
    ),
    "Batch": _object(
        "Several events, published in this order, all of them or none.",
        {"batch": _list(_reference("BatchEvent"), f"At most {LIMITS.max_batch_events}.")},
        examples=[
            {
                "batch": [
                    {"name": "created", "channel": "orders", "data": '{"id":7}'},
                    {"name": "left", "channel": "shop-7", "data": '{"count":3}', "info": "subscription_count"},
                ]
            }
        ],
    ),
    "Nothing": _answer("An empty object: the request was carried out.", {}),
    "Counts": _answer("The counts of one channel that `info` names and the channel's type has.", {}, COUNTS),
    "Published": _answer(
        "The attributes that `info` names, for an event on one channel.\n\n"
        "Counts are missing where they could not be read; the event is published nevertheless.",
        {},
        {
            **COUNTS,
            "offset": _integer("The event's position in the channel's history: 1, 2, 3, … Only with a history."),
            "epoch": _text("Offsets of different epochs are not comparable. It accompanies `offset`."),
        },
    ),
    "Triggered": _answer(
        "An empty object, or the attributes that `info` names.", {}, {"channels": _by_name(_reference("Published"))}
    ),
    "BatchTriggered": _answer(
        "An empty object, or, if an event of the batch has `info`, a list.",
        {},
        {"batch": _list(_reference("Published"), "One for each event, in order; empty for an event without `info`.")},
    ),
    "Channels": _answer("The occupied channels.", {"channels": _by_name(_reference("Counts"))}),
    "Cached": _answer(
        "The event that a cache channel holds for new subscribers.",
        {
            "data": {"description": "The published data, a string."},
            "ttl": _integer("Seconds until the channel forgets it."),
        },
    ),
    "Channel": _answer(
        "One channel.",
        {"occupied": OCCUPIED},
        {**COUNTS, "cache": _or_null(_reference("Cached"), "`null`: the channel holds no event. Cache channels only.")},
    ),
    "Stats": _answer(
        "One channel, in the form of the API before 2012.",
        {"occupied": OCCUPIED, "connection_count": COUNTS["subscription_count"]},
        {"user_count": COUNTS["user_count"]},
    ),
    "User": _answer(
        "A user in a presence channel.",
        {"id": _text()},
        {
            "user_info": {
                "description": "The application's description of the user, or `null`. Only with `with_user_info`."
            }
        },
    ),
    "SignedInUser": _answer(
        "A user of the application.",
        {"online": {"type": "boolean", "description": "Whether the user is signed in on at least one connection."}},
    ),
    "Users": _answer(
        "The users of a presence channel.",
        {"users": _list(_reference("User"), "Each user once, in the order in which they joined.")},
    ),
    "Item": _answer(
        "An event of a channel's history.",
        {
            "offset": _integer("Its position: 1, 2, 3, … without a gap."),
            "event": _text("Its name."),
            "data": {"description": "The data that subscribers got: a string, or any JSON value from a client."},
        },
        {
            "user_id": _text("The member that sent it, for a client event of a presence channel."),
            "revised": {
                "type": "object",
                "description": "Of a later version: `by`, the user who made it, `at`, and `version`, from 2 on.",
            },
        },
    ),
    "History": _answer(
        "A page of a channel's history.",
        {
            "items": _list(_reference("Item"), "In the order of the request."),
            "position": _or_null(_text(), "Of the newest event, `EPOCH:OFFSET`; `null` if there never was one."),
            "next": _or_null(
                _text(), "The `before` of the next page (`after`, with `forwards`); `null`: the last page."
            ),
        },
    ),
    "MemberUpdate": _object(
        "The new info of a member.",
        {"user_info": {"description": f"Any JSON, at most {LIMITS.max_member_bytes} bytes."}},
        examples=[{"user_info": {"name": "Ann", "state": "typing"}}],
    ),
    "MemberLeasing": _object(
        "How long a user is a member without a connection.",
        {},
        {
            "ttl": {
                "type": "integer",
                "minimum": 1,
                "maximum": members.MAX_TTL_S,
                "default": members.TTL_S,
                "description": "Seconds until the member leaves without a renewal.",
            },
            "user_info": {
                "description": "Any JSON. A different one updates the member; without it the info stays as it is."
            },
        },
    ),
    "MemberLease": _answer(
        "A member with a time to live.",
        {
            "joined": {"type": "boolean", "description": "Whether the user was no member before."},
            "ttl": {"type": "integer", "description": "Seconds."},
        },
    ),
    "MemberLeft": _answer(
        "The end of a member's time to live.",
        {"left": {"type": "boolean", "description": "False if there was nothing to end."}},
    ),
    "MemberUpdated": _answer(
        "Whether the user is a member.",
        {"updated": {"type": "boolean", "description": "False: the user is no member of the channel."}},
    ),
    "Revision": _object(
        "A new version of a kept message, or with `delete` its end.",
        {},
        {
            "data": DATA,
            "delete": _text("`1`: delete the message.", enum=["0", "1"]),
            "by": _text("The id of the user who changes it."),
        },
        examples=[{"data": '{"text":"better"}', "by": "42"}, {"delete": "1"}],
    ),
    "Revised": _answer(
        "The position of the notice for subscribers.",
        {"offset": _integer("In the channel's history."), "epoch": _text("Of the history.")},
    ),
    "StreamOpening": _object(
        "A stream: a message that grows. Its events have the name of the stream, and as data a JSON object with `id`, "
        "`seq`, `at`, `text`, `state` and, where `at` is 0, `meta`.",
        {"name": EVENT_NAME},
        {
            "id": STREAM_ID,
            "meta": {"description": "Any JSON for the pages, beside the text."},
            "text": _text("What the stream begins with."),
            "seq": _integer("The number of the newest token in `text`.", minimum=0),
            "data": ENCRYPTED,
            "length": _integer("Of the text, in UTF-16 code units. With `data` only.", minimum=0),
            "closings": {
                "type": "object",
                "description": "On encrypted channels: the encrypted data of the events with which the server ends the "
                "stream without its producer.",
                "properties": {"cancelled": _text(), "interrupted": _text()},
            },
        },
        examples=[{"name": "answer", "id": "answer-7", "meta": {"by": "assistant"}}],
    ),
    "StreamAppend": _object(
        "Text for a stream, its end, or both. With neither the lease is renewed.",
        {"seq": TOKEN_NUMBER},
        APPEND_FIELDS,
        examples=[{"seq": 7, "text": " world"}, {"seq": 7, "state": "done"}],
    ),
    "StreamBatchItem": _object(
        "An append to a stream of any channel.",
        {"channel": CHANNEL_NAME, "stream": STREAM_ID, "seq": TOKEN_NUMBER},
        APPEND_FIELDS,
        examples=[{"channel": "private-chat-7", "stream": "answer-7", "seq": 7, "text": " world"}],
    ),
    "StreamBatch": _object(
        "Appends to several streams. Those to one stream are applied in order.",
        {
            "batch": _list(
                _reference("StreamBatchItem"), "Each is applied or refused on its own.", maxItems=streams.BATCH
            )
        },
    ),
    "Stream": _answer(
        "A stream with its text.",
        STREAM,
        {
            "text": _text("The text; not on encrypted channels."),
            "pieces": _list(_text(), "On encrypted channels: the encrypted data of the events that hold the text."),
        },
    ),
    "StreamState": _answer(
        "A stream as it is after the request.",
        {"accepted": {"type": "boolean", "description": "Whether the request changed the stream."}, **STREAM},
    ),
    "StreamRefusal": _answer(
        "The reason why one append of a batch was refused.",
        {
            "status": _integer("That the append alone would have got: 400, 413 or 429."),
            "error": _text("A sentence for developers. It names both numbers if a limit is exceeded."),
            "code": _text("For machines."),
        },
    ),
    "StreamBatchDone": _answer(
        "The answer to each append, in the same order.",
        {
            "batch": _list(
                {"anyOf": [_reference("StreamState"), _reference("StreamRefusal")]},
                "The stream as it is after the append, or why the append was refused.",
            )
        },
    ),
    "Refusal": _answer(
        "The reason why a request was not carried out.",
        {
            "error": _text("A sentence for developers. It names both numbers if a limit is exceeded."),
            "code": _text("For machines."),
        },
    ),
}


# -- operations --------------------------------------------------------------------------------------------------------


def _operation(
    tag: str,
    summary: str,
    description: str,
    answer: str,
    *,
    query: Schema | None = None,
    required: tuple[str, ...] = (),
    body: Schema | None = None,
    keyed: bool = False,
    path: Schema | None = None,
    refusals: tuple[int, ...] = COMMON,
) -> Schema:
    """One operation. `path`, `query`: schemas of its parameters; `required`: the query's that are; `keyed`: whether it
    takes an idempotency key; `answer`: the schema of a successful answer.
    """
    return {
        "tags": [tag],
        "summary": summary,
        "description": description,
        "parameters": [
            *(_parameter("path", name, schema, required=True) for name, schema in (path or {}).items()),
            *(_parameter("query", name, schema, required=name in required) for name, schema in (query or {}).items()),
            *([_parameter("header", "idempotency-key", IDEMPOTENCY_KEY, required=False)] if keyed else []),
        ],
        **({"requestBody": {"required": True, "content": _json(body)}} if body is not None else {}),
        "responses": {
            "200": {"description": "Successful Response", "content": _json(_reference(answer))},
            **{str(status): _refusal(status) for status in sorted(refusals)},
        },
        "security": [{name: [] for name in (SIGNATURE if body is None else {**SIGNATURE, **BODY_SIGNATURE})}],
        **({"deprecated": True} if tag == "Deprecated" else {}),
    }


def _json(schema: Schema) -> Schema:
    return {"application/json": {"schema": schema}}


def _refusal(status: int) -> Schema:
    headers = {"headers": RETRY_AFTER} if status in (429, 503) else {}
    return {"description": REFUSALS[status], **headers, "content": _json(_reference("Refusal"))}


OF_APP = {"app_id": APP_ID}
OF_CHANNEL = {"app_id": APP_ID, "channel": CHANNEL_NAME}
OF_STREAM = {**OF_CHANNEL, "stream": STREAM_ID}

# By the path of the route.
OPERATIONS: dict[str, Schema] = {
    "/apps/{app_id}/events": _operation(
        "Events",
        "Publish an event",
        "To all subscribers of one or several channels. A 200 means that the event is in the log of all workers.",
        "Triggered",
        path=OF_APP,
        body=_reference("Event"),
        keyed=True,
        refusals=PUBLISHING,
    ),
    "/apps/{app_id}/batch_events": _operation(
        "Events",
        "Publish several events",
        "In order, and all of them or none. A key in the header becomes one for each event, by its index.",
        "BatchTriggered",
        path=OF_APP,
        body=_reference("Batch"),
        keyed=True,
        refusals=PUBLISHING,
    ),
    "/apps/{app_id}/channels": _operation(
        "Channels",
        "List the occupied channels",
        "A channel is occupied while it has a subscriber anywhere in the deployment.",
        "Channels",
        path=OF_APP,
        query={"filter_by_prefix": PREFIX, "info": CHANNELS_INFO},
    ),
    "/apps/{app_id}/channels/{channel}": _operation(
        "Channels",
        "Describe one channel",
        'A channel without subscribers is answered with `"occupied": false`.',
        "Channel",
        path=OF_CHANNEL,
        query={"info": CHANNEL_INFO},
    ),
    "/apps/{app_id}/channels/{channel}/users": _operation(
        "Channels",
        "List the users of a presence channel",
        "Each user once, in the whole deployment.",
        "Users",
        path={"app_id": APP_ID, "channel": PRESENCE_CHANNEL},
        query={"with_user_info": WITH_USER_INFO},
    ),
    "/apps/{app_id}/channels/{channel}/users/{user_id}/update": _operation(
        "Channels",
        "Update a member of a presence channel",
        "The member does not leave. The others get `fanfare:member_updated`.",
        "MemberUpdated",
        path={"app_id": APP_ID, "channel": PRESENCE_CHANNEL, "user_id": USER_ID},
        body=_reference("MemberUpdate"),
    ),
    "/apps/{app_id}/channels/{channel}/members/{user_id}": _operation(
        "Channels",
        "Join a presence channel for a time",
        "Makes a user a member without a connection, such as an agent or a backend, or renews that. Without a renewal "
        "the member leaves after `ttl` seconds. Subscribers see an ordinary member.",
        "MemberLease",
        path={"app_id": APP_ID, "channel": PRESENCE_CHANNEL, "user_id": USER_ID},
        body=_reference("MemberLeasing"),
        refusals=PUBLISHING,
    ),
    "/apps/{app_id}/channels/{channel}/members/{user_id}/leave": _operation(
        "Channels",
        "Leave a presence channel before the time is over",
        "Connections of the same user stay members.",
        "MemberLeft",
        path={"app_id": APP_ID, "channel": PRESENCE_CHANNEL, "user_id": USER_ID},
        refusals=PUBLISHING,
    ),
    "/apps/{app_id}/channels/{channel}/history": _operation(
        "Channels",
        "Read a channel's history",
        "Only of channels that a channel rule matches; for others it is a 400 with the code `not_enabled`.",
        "History",
        path=OF_CHANNEL,
        query={"limit": PAGE_SIZE, "after": POSITION, "before": POSITION, "direction": DIRECTION, "open": OPEN},
        refusals=(*COMMON, 410),
    ),
    "/apps/{app_id}/users/{user_id}": _operation(
        "Users",
        "Tell whether a user is online",
        "A user is online while a connection anywhere in the deployment is signed in as this user. Members of presence "
        "channels that did not sign in do not count. A user that never signed in is answered with `false`.",
        "SignedInUser",
        path={"app_id": APP_ID, "user_id": USER_ID},
    ),
    "/apps/{app_id}/channels/{channel}/history/{position}/revise": _operation(
        "Channels",
        "Change or delete a kept message",
        "It keeps its place, and subscribers get `fanfare:revised` or `fanfare:deleted`. Not on encrypted channels.",
        "Revised",
        path={**OF_CHANNEL, "position": POSITION},
        body=_reference("Revision"),
        refusals=(*COMMON, 410),
    ),
    "/apps/{app_id}/channels/{channel}/streams": _operation(
        "Streams",
        "Open a stream",
        "A stream that is open stays as it is: the producer continues after `seq`. A failed or interrupted one is "
        "reopened with its text, or with `text`.",
        "StreamState",
        path=OF_CHANNEL,
        body=_reference("StreamOpening"),
    ),
    "/apps/{app_id}/channels/{channel}/streams/{stream}": _operation(
        "Streams",
        "Read a stream",
        "A stream that is open or has ended recently (FANFARE_STREAM_KEEP); others are in the history.",
        "Stream",
        path=OF_STREAM,
    ),
    "/apps/{app_id}/channels/{channel}/streams/{stream}/append": _operation(
        "Streams",
        "Append to a stream",
        "Applied only if the stream's number is `after`, so a repeated request is applied once. Without an append or a "
        "renewal the stream is `interrupted` after 15 s (FANFARE_STREAM_LEASE).",
        "StreamState",
        path=OF_STREAM,
        body=_reference("StreamAppend"),
        refusals=PUBLISHING,
    ),
    "/apps/{app_id}/channels/{channel}/streams/{stream}/cancel": _operation(
        "Streams",
        "Cancel a stream",
        "The next append of its producer is not accepted, and answers `cancelled`.",
        "StreamState",
        path=OF_STREAM,
    ),
    "/apps/{app_id}/streams/append": _operation(
        "Streams",
        "Append to several streams",
        "In one commit of the log, for a backend with many streams. A refused append does not stop the others.",
        "StreamBatchDone",
        path=OF_APP,
        body=_reference("StreamBatch"),
    ),
    "/apps/{app_id}/users/{user_id}/terminate_connections": _operation(
        "Users",
        "Close a user's connections",
        "WebSockets that are signed in as this user, and SSE connections with a token of this user, in every worker. "
        "Members of presence channels that did not sign in stay.",
        "Nothing",
        path={"app_id": APP_ID, "user_id": USER_ID},
        query={"reconnect": RECONNECT},
    ),
    "/users/{user_id}/terminate_connections": _operation(
        "Users",
        "Close a user's connections in the key's application",
        "The route of the vendor's Python library: the application is that of `auth_key`.",
        "Nothing",
        path={"user_id": USER_ID},
        query={"reconnect": RECONNECT},
        refusals=tuple(status for status in COMMON if status != 404),
    ),
    "/apps/{app_id}/capabilities/{token_id}/revoke": _operation(
        "Users",
        "Revoke a capability token",
        "Subscriptions and SSE connections that use the token end, in every worker, and later uses are refused. The "
        "revocation is remembered until `exp`; without it for 30 days, the longest life of a token with an id.",
        "Nothing",
        path={"app_id": APP_ID, "token_id": TOKEN_ID},
        query={"exp": TOKEN_EXPIRY},
    ),
    "/apps/{app_id}/channels/{channel}/events": _operation(
        "Deprecated",
        "Publish an event on one channel",
        "Use `POST …/events`.",
        "Nothing",
        path=OF_CHANNEL,
        query={"name": EVENT_NAME, "socket_id": SOCKET_ID},
        required=("name",),
        body={"description": "The event's data, as it is. It need not be JSON.", "title": "Data"},
        keyed=True,
        refusals=PUBLISHING,
    ),
    "/apps/{app_id}/channels/{channel}/stats": _operation(
        "Deprecated",
        "Describe the occupancy of one channel",
        "Use `GET …/channels/{channel}`.",
        "Stats",
        path=OF_CHANNEL,
    ),
}


@functools.cache
def document() -> Schema:
    """The whole description."""
    paths: dict[str, Schema] = {}
    for route in operations.ROUTES:
        operation = dict(OPERATIONS[route.path])
        responses = dict(operation["responses"])
        operation["responses"] = {str(route.status): responses.pop("200"), **responses}
        name = route.operation.__name__
        operation["operationId"] = name if "{app_id}" in route.path else f"{name}_by_key"
        paths[route.path] = {route.methods[0].lower(): operation}
    schemes = {
        name: {"type": "apiKey", "in": "query", "name": name, "description": text}
        for name, text in {**SIGNATURE, **BODY_SIGNATURE}.items()
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "Fanfare HTTP API", "description": INTRODUCTION, "version": VERSION},
        "paths": paths,
        "components": {"schemas": SCHEMAS, "securitySchemes": schemes},
    }


# -- serving -----------------------------------------------------------------------------------------------------------

METHODS = b"GET, HEAD, OPTIONS"
# The description is public, and tools that run in a browser read it.
ANY_ORIGIN = (b"access-control-allow-origin", b"*")


class Description:
    """Answers `PATH` with the description as JSON."""

    async def __call__(self, scope: requests.Scope, receive: requests.Receive, send: requests.Send) -> None:
        method = scope["method"]
        if scope["path"].removeprefix(scope.get("root_path", "")).rstrip("/") != PATH:
            await self._send(send, 404, _error(f"The description is at {PATH}.", "not_found"))
        elif method in ("GET", "HEAD"):
            await self._send(send, 200, _encoded(), with_body=method == "GET")
        elif method == "OPTIONS":
            allowed = [(b"allow", METHODS), (b"access-control-allow-methods", METHODS)]
            await send({"type": "http.response.start", "status": 204, "headers": [ANY_ORIGIN, *allowed]})
            await send({"type": "http.response.body", "body": b""})
        else:
            await self._send(send, 405, _error("Read the description with GET.", "method_not_allowed"))

    async def _send(self, send: requests.Send, status: int, body: bytes, *, with_body: bool = True) -> None:
        headers = [
            ANY_ORIGIN,
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            *([(b"allow", METHODS)] if status == 405 else []),
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body if with_body else b""})


@functools.cache
def _encoded() -> bytes:
    return orjson.dumps(document())


def _error(message: str, code: str) -> bytes:
    return orjson.dumps({"error": message, "code": code})
