"""Fanfare: realtime for Django projects. Everything that a project imports:

    from fanfare import publish, channel, presence

| names                                                     | purpose                                                |
|-----------------------------------------------------------|--------------------------------------------------------|
| `publish`, `apublish`                                     | publish an event to a channel or to a user             |
| `stream`, `cancel_stream`, `acancel_stream`               | a message that grows, such as a model's answer         |
| `broadcast`                                               | publish the changes of a model                         |
| `channel`, `Member`                                       | authorize private and presence channels                |
| `user_data`, `UserData`                                   | choose the user of a page that signs in                |
| `presence`, `history`                                     | query members, users, subscribers and past events      |
| `snapshot`                                                | start a page at the state of its database query        |
| `update_message`, `delete_message`, `may_revise`, …       | new versions of messages that a channel has kept       |
| `signals`                                                 | Django signals for joins, leaves and client events     |
| `background`, `periodic`                                  | run coroutines beside the server                       |
| `capability`, `revoke_capability`, `sse_token`            | tokens that carry channels, rights and expiry          |
| `decrypt`                                                 | decrypt the data of encrypted channels                 |
| `EngineUnavailable`, `PublishError`, `NoApplication`, …   | the exceptions; `fanfare.errors` shows the whole tree  |

`fanfare.testing` has the tools for a project's tests.

The names are loaded at first use and import no models, so they can be imported anywhere: in settings, in a package's
`__init__`, in apps and models modules.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fanfare import errors as errors
    from fanfare.engine.errors import EngineError, EngineUnavailable
    from fanfare.errors import (
        AccessRefused,
        CalledOnEventLoop,
        DataTooLarge,
        DecryptionFailed,
        FanfareError,
        InvalidAnswer,
        InvalidBroadcast,
        InvalidJob,
        InvalidLimit,
        InvalidName,
        InvalidPattern,
        InvalidRule,
        InvalidTarget,
        InvalidTiming,
        InvalidUser,
        NoApplication,
        NoMasterKey,
        PublishError,
        RuleError,
        StreamCancelled,
        StreamClosed,
        StreamConflict,
        StreamEnded,
        StreamError,
        StreamTooLong,
        TooManyMembers,
        TooManyStreams,
        UnencodableData,
    )
    from fanfare.integration import history as history
    from fanfare.integration import presence as presence
    from fanfare.integration import signals as signals
    from fanfare.integration.broadcasts import broadcast
    from fanfare.integration.payloads import decrypt
    from fanfare.integration.publishing import apublish, publish
    from fanfare.integration.revisions import (
        adelete_message,
        aupdate_message,
        delete_message,
        may_revise,
        update_message,
    )
    from fanfare.integration.rules import channel
    from fanfare.integration.snapshots import snapshot
    from fanfare.integration.streams import acancel_stream, cancel_stream, stream
    from fanfare.integration.tokens import arevoke_capability, capability, revoke_capability, sse_token
    from fanfare.integration.users import Member, UserData, user_data
    from fanfare.jobs.declarations import background, periodic

__version__ = "0.2.0.dev0"

_MODULES = {
    "errors": "fanfare.errors",
    "history": "fanfare.integration.history",
    "presence": "fanfare.integration.presence",
    "signals": "fanfare.integration.signals",
}
_HOMES = {
    "acancel_stream": "fanfare.integration.streams",
    "adelete_message": "fanfare.integration.revisions",
    "apublish": "fanfare.integration.publishing",
    "arevoke_capability": "fanfare.integration.tokens",
    "aupdate_message": "fanfare.integration.revisions",
    "background": "fanfare.jobs.declarations",
    "broadcast": "fanfare.integration.broadcasts",
    "cancel_stream": "fanfare.integration.streams",
    "capability": "fanfare.integration.tokens",
    "channel": "fanfare.integration.rules",
    "decrypt": "fanfare.integration.payloads",
    "delete_message": "fanfare.integration.revisions",
    "EngineError": "fanfare.engine.errors",
    "EngineUnavailable": "fanfare.engine.errors",
    "Member": "fanfare.integration.users",
    "may_revise": "fanfare.integration.revisions",
    "periodic": "fanfare.jobs.declarations",
    "publish": "fanfare.integration.publishing",
    "snapshot": "fanfare.integration.snapshots",
    "revoke_capability": "fanfare.integration.tokens",
    "sse_token": "fanfare.integration.tokens",
    "stream": "fanfare.integration.streams",
    "update_message": "fanfare.integration.revisions",
    "user_data": "fanfare.integration.users",
    "UserData": "fanfare.integration.users",
}

__all__ = [
    "AccessRefused",
    "CalledOnEventLoop",
    "DataTooLarge",
    "DecryptionFailed",
    "EngineError",
    "EngineUnavailable",
    "FanfareError",
    "InvalidAnswer",
    "InvalidBroadcast",
    "InvalidJob",
    "InvalidLimit",
    "InvalidName",
    "InvalidPattern",
    "InvalidRule",
    "InvalidTarget",
    "InvalidTiming",
    "InvalidUser",
    "Member",
    "NoApplication",
    "NoMasterKey",
    "PublishError",
    "RuleError",
    "StreamCancelled",
    "StreamClosed",
    "StreamConflict",
    "StreamEnded",
    "StreamError",
    "StreamTooLong",
    "TooManyMembers",
    "TooManyStreams",
    "UnencodableData",
    "UserData",
    "acancel_stream",
    "adelete_message",
    "apublish",
    "arevoke_capability",
    "aupdate_message",
    "background",
    "broadcast",
    "cancel_stream",
    "capability",
    "channel",
    "decrypt",
    "delete_message",
    "errors",
    "history",
    "may_revise",
    "periodic",
    "presence",
    "publish",
    "revoke_capability",
    "signals",
    "snapshot",
    "sse_token",
    "stream",
    "update_message",
    "user_data",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        value: Any = importlib.import_module(_MODULES[name])
    elif name in __all__:
        value = getattr(importlib.import_module(_HOMES.get(name, "fanfare.errors")), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
