"""The description of the HTTP API that machines read (OpenAPI 3.1).

FastAPI makes it from the functions of this module. They are never called: a publication is too frequent for a
framework, so `fanfare.api.application` answers these routes. What ties the two together is that the operations are
typed with the answers that are described here, and tests that hold every route and every status of one against the
other.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import fastapi
import pydantic
from fastapi.middleware import cors
from typing_extensions import is_typeddict

from fanfare.api import answers, attributes
from fanfare.api.openapi import payloads, texts
from fanfare.hub import history_pages

VERSION = "1.0"  # that of the signing scheme, `auth_version`: it tells clients which one to speak

# The answers are plain types, so that what publishes does not import pydantic; how to read them is said here.
for _answer in vars(answers).values():
    if is_typeddict(_answer):
        pydantic.with_config(use_attribute_docstrings=True, extra="forbid")(_answer)

AppId = Annotated[str, fastapi.Path(pattern="^[0-9]+$", examples=["3"])]
ChannelName = Annotated[payloads.ChannelName, fastapi.Path()]
UserId = Annotated[
    str, fastapi.Path(min_length=1, description=f"At most {payloads.LIMITS.max_user_id} characters.", examples=["42"])
]
Switch = Literal["0", "1"]

COMMON = (400, 401, 403, 404, 408, 413, 500, 503)
PUBLISHING = (*COMMON, 429)


def _refusals(statuses: tuple[int, ...]) -> dict[int | str, dict[str, Any]]:
    refusals: dict[int | str, dict[str, Any]] = {}
    for status in sorted(statuses):
        refusals[status] = {"model": answers.Refusal, "description": texts.REFUSALS[status]}
        if status in (429, 503):
            refusals[status]["headers"] = texts.RETRY_AFTER
    return refusals


def _signed(statuses: tuple[int, ...] = COMMON, *, body: bool = False) -> dict[str, Any]:
    """What every operation has: its refusals, and its signature."""
    parts = {**texts.SIGNATURE, **(texts.BODY_SIGNATURE if body else {})}
    return {"responses": _refusals(statuses), "openapi_extra": {"security": [{part: [] for part in parts}]}}


router = fastapi.APIRouter()


@router.post(
    "/apps/{app_id}/events",
    response_model=answers.Triggered,
    summary="Publish an event",
    tags=["Events"],
    **_signed(PUBLISHING, body=True),
)
def trigger(
    app_id: AppId,
    event: payloads.Event,
    idempotency_key: Annotated[payloads.IdempotencyKey, fastapi.Header()] = "",
) -> None:
    """To all subscribers of one or several channels. A 200 means that it is in the log of all workers."""


@router.post(
    "/apps/{app_id}/batch_events",
    response_model=answers.BatchTriggered,
    summary="Publish several events",
    tags=["Events"],
    **_signed(PUBLISHING, body=True),
)
def trigger_batch(
    app_id: AppId,
    batch: payloads.Batch,
    idempotency_key: Annotated[payloads.IdempotencyKey, fastapi.Header()] = "",
) -> None:
    """In their order, and all of them or none. A key in the header becomes one for each event, by its place."""


@router.get(
    "/apps/{app_id}/channels",
    response_model=answers.Channels,
    summary="List the occupied channels",
    tags=["Channels"],
    **_signed(),
)
def channels(
    app_id: AppId,
    filter_by_prefix: Annotated[str, fastapi.Query(description="Only names that begin so.")] = "",
    info: Annotated[
        str,
        fastapi.Query(
            pattern=payloads.info_pattern(attributes.COUNTS),
            description="`subscription_count`, and with a `filter_by_prefix` that begins with `presence-` also "
            "`user_count`, separated by commas.",
            examples=["subscription_count"],
        ),
    ] = "",
) -> None:
    """A channel is occupied while anybody in the whole deployment is subscribed to it."""


@router.get(
    "/apps/{app_id}/channels/{channel}",
    response_model=answers.Channel,
    summary="Ask about one channel",
    tags=["Channels"],
    **_signed(),
)
def channel(
    app_id: AppId,
    channel: ChannelName,
    info: Annotated[
        str,
        fastapi.Query(
            pattern=payloads.info_pattern(attributes.OF_CHANNEL),
            description="`subscription_count`, for a presence channel `user_count`, for a cache channel `cache`, "
            "separated by commas.",
            examples=["subscription_count"],
        ),
    ] = "",
) -> None:
    """One that nobody is subscribed to is answered with `"occupied": false`."""


@router.get(
    "/apps/{app_id}/channels/{channel}/users",
    response_model=answers.Users,
    summary="List the users of a presence channel",
    tags=["Channels"],
    **_signed(),
)
def users(
    app_id: AppId,
    channel: Annotated[str, fastapi.Path(pattern=payloads.PRESENCE_PATTERN, examples=["presence-room"])],
    with_user_info: Annotated[Switch, fastapi.Query(description="Whether to tell what is known of each user.")] = "0",
) -> None:
    """Each user once, in the whole deployment."""


@router.get(
    "/apps/{app_id}/channels/{channel}/history",
    response_model=answers.History,
    summary="Read what is kept of a channel",
    tags=["Channels"],
    **_signed((*COMMON, 410)),
)
def history(
    app_id: AppId,
    channel: ChannelName,
    *,
    limit: Annotated[
        int, fastapi.Query(ge=1, le=history_pages.MOST, description="Events of a page.")
    ] = history_pages.LIMIT,
    after: Annotated[payloads.Position, fastapi.Query()] = "",
    before: Annotated[payloads.Position, fastapi.Query()] = "",
    direction: Annotated[
        Literal["backwards", "forwards"], fastapi.Query(description="The newest first, or the oldest.")
    ] = "backwards",
) -> None:
    """Only of a channel that a channel rule fits; of others it is a 400 with the code `not_enabled`."""


@router.post(
    "/apps/{app_id}/users/{user_id}/terminate_connections",
    response_model=answers.Nothing,
    summary="End a user's connections",
    tags=["Users"],
    **_signed(),
)
def terminate(
    app_id: AppId,
    user_id: UserId,
    reconnect: Annotated[
        Switch, fastapi.Query(description="With 1 clients come back at once (4200); otherwise they stay away (4009).")
    ] = "0",
) -> None:
    """Those that are signed in as this user, in every worker. Members of presence channels who did not sign in stay."""


@router.post(
    "/users/{user_id}/terminate_connections",
    response_model=answers.Nothing,
    summary="End a user's connections, of the key's application",
    tags=["Users"],
    **_signed(tuple(status for status in COMMON if status != 404)),
)
def terminate_by_key(user_id: UserId, reconnect: Annotated[Switch, fastapi.Query()] = "0") -> None:
    """Where the vendor's Python library sends it: the application is that of `auth_key`."""


@router.post(
    "/apps/{app_id}/channels/{channel}/events",
    response_model=answers.Nothing,
    status_code=202,
    summary="Publish an event on one channel",
    tags=["Deprecated"],
    deprecated=True,
    **_signed(PUBLISHING, body=True),
)
def trigger_on_channel(
    app_id: AppId,
    channel: ChannelName,
    *,
    name: Annotated[payloads.EventName, fastapi.Query()],
    data: Annotated[Any, fastapi.Body(description="The event's data, as it is. Need not be JSON.")],
    socket_id: Annotated[payloads.SocketId, fastapi.Query()] = "",
    idempotency_key: Annotated[payloads.IdempotencyKey, fastapi.Header()] = "",
) -> None:
    """Use `POST …/events`."""


@router.get(
    "/apps/{app_id}/channels/{channel}/stats",
    response_model=answers.Stats,
    summary="Ask how occupied a channel is",
    tags=["Deprecated"],
    deprecated=True,
    **_signed(),
)
def stats(app_id: AppId, channel: ChannelName) -> None:
    """Use `GET …/channels/{channel}`."""


class Description(fastapi.FastAPI):
    """Answers one path: that of the description."""

    def __init__(self) -> None:
        super().__init__(
            title="Fanfare HTTP API",
            version=VERSION,
            description=texts.INTRODUCTION,
            openapi_url=texts.PATH,
            docs_url=None,
            redoc_url=None,
            generate_unique_id_function=lambda route: route.name,
        )
        # It says nothing that is not public, and tools in a browser want to read it.
        self.add_middleware(cors.CORSMiddleware, allow_origins=["*"])
        self.include_router(router)

    def openapi(self) -> dict[str, Any]:
        """FastAPI's, with the signature, and without the answer that its own validation would give."""
        if self.openapi_schema is not None:
            return self.openapi_schema
        schema = super().openapi()
        for path in schema["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
                for parameter in operation["parameters"]:
                    parameter["schema"].pop("default", None)  # Python wants one; here it means "not sent"
        components = schema["components"]
        for name in ("HTTPValidationError", "ValidationError"):
            components["schemas"].pop(name, None)
        components["securitySchemes"] = {
            name: {"type": "apiKey", "in": "query", "name": name, "description": text}
            for name, text in (texts.SIGNATURE | texts.BODY_SIGNATURE).items()
        }
        return schema
