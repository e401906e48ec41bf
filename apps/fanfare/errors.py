"""The exceptions that Fanfare raises to a project's code. Each can be imported from `fanfare`.

    FanfareError
    ├── EngineError                  the log
    │   ├── EngineUnavailable        it cannot be read or written now; try again
    │   └── EngineMisconfigured      it cannot be opened as it is configured; change a setting
    ├── PublishError                 a call has a wrong argument; nothing was sent
    │   ├── InvalidName              a channel, an event, a socket id or an idempotency key has a wrong form
    │   ├── InvalidUser              an argument that is neither a saved user nor a user's id
    │   ├── InvalidTarget            no channel and no user, or both
    │   ├── InvalidTiming            `on_commit=False` together with `outbox=True`
    │   ├── InvalidLimit             the number of events to read from a history is out of range
    │   ├── UnencodableData          data without a JSON form
    │   ├── DataTooLarge             data over the application's limit
    │   ├── NoApplication            an application that does not exist, is disabled or has other credentials
    │   ├── NoMasterKey              an encrypted channel without FANFARE_ENCRYPTION_MASTER_KEY
    │   ├── CalledOnEventLoop        a blocking call in a coroutine
    │   └── StreamError              an append to a stream was refused
    │       ├── StreamCancelled      a reader or a backend stopped the stream
    │       ├── StreamClosed         it has ended
    │       ├── StreamConflict       another producer appends to it, or a number was left out
    │       ├── StreamTooLong        over FANFARE_STREAM_MAX_LENGTH
    │       └── TooManyStreams       over FANFARE_STREAM_MAX_IN_CHANNEL or FANFARE_STREAM_MAX_IN_APP
    ├── RuleError                    an authorization rule or the `@user_data` function is wrong
    │   ├── InvalidPattern           its pattern is wrong
    │   ├── InvalidRule              its parameters are wrong, or another rule has the same pattern
    │   └── InvalidAnswer            it returned a wrong value
    ├── InvalidBroadcast             a declaration of `broadcast` is wrong
    ├── InvalidJob                   a declaration of `background` or `periodic` is wrong
    ├── DecryptionFailed             the master key cannot decrypt the data
    └── AccessRefused                a visitor may not join a channel or sign in
        └── MalformedRequest         a request to the auth endpoint without a needed parameter

The EngineErrors are defined in `fanfare.engine.errors`. This module imports nothing of Fanfare, so every part of it can
use the base class.
"""

from __future__ import annotations


class FanfareError(Exception):
    """The base class of all exceptions of Fanfare. `code` is a stable word for programs; the message is for people."""

    code = "fanfare_error"


class PublishError(FanfareError):
    """A call of `publish`, `presence` or `history` has a wrong argument. The same call would fail again."""

    code = "publish_error"


class InvalidName(PublishError):
    """A channel name, an event name, a socket id or an idempotency key has a wrong form."""

    code = "invalid_name"


class InvalidUser(PublishError):
    """An argument is neither a saved user nor the id of one."""

    code = "invalid_user"


class InvalidTarget(PublishError):
    """An event needs either a channel or `to_user`."""

    code = "invalid_target"


class InvalidTiming(PublishError):
    """`on_commit=False` sends at once; `outbox=True` sends after the commit."""

    code = "invalid_timing"


class InvalidLimit(PublishError):
    """The number of events to read from a history is out of range."""

    code = "invalid_limit"


class UnencodableData(PublishError):
    """The data has no JSON form."""

    code = "unencodable_data"


class DataTooLarge(PublishError):
    """The data is over the application's limit. `size` and `limit` are bytes of UTF-8 JSON text."""

    code = "data_too_large"

    def __init__(self, event: str, size: int, limit: int) -> None:
        super().__init__(
            f"The data of the event {event!r} has {size} bytes; the application allows {limit}. "
            "Publish an id and let the page fetch the rest, or raise max_event_bytes of the application."
        )
        self.size = size
        self.limit = limit


class NoApplication(PublishError):
    """The application does not exist or is disabled, or the remote deployment does not accept its credentials."""

    code = "no_application"


class NoMasterKey(PublishError):
    """A channel is encrypted and FANFARE_ENCRYPTION_MASTER_KEY is not set."""

    code = "no_master_key"


class CalledOnEventLoop(PublishError):
    """A blocking call was made on an event loop, which it would stop. Each such call has an async twin."""

    code = "called_on_event_loop"


class StreamError(PublishError):
    """An append to a stream was refused."""

    code = "stream_error"


class StreamEnded(StreamError):
    """The stream accepts no more text. `text`: its final text; empty if this process does not know it."""

    code = "stream_ended"

    def __init__(self, message: str, text: str = "") -> None:
        super().__init__(message)
        self.text = text


class StreamCancelled(StreamEnded):
    """A reader or a backend cancelled the stream. The producer should stop."""

    code = "stream_cancelled"


class StreamClosed(StreamEnded):
    """The stream has ended: it is done or failed."""

    code = "stream_closed"


class StreamConflict(StreamError):
    """Another producer appends to the stream, or a number was left out. `expected` and `actual`: numbers of tokens."""

    code = "stream_conflict"

    def __init__(self, message: str, expected: int, actual: int) -> None:
        super().__init__(message)
        self.expected = expected
        self.actual = actual


class StreamTooLong(StreamError):
    """The text of a stream would be over the limit. `actual` and `limit` are UTF-16 code units."""

    code = "stream_too_long"

    def __init__(self, actual: int, limit: int) -> None:
        super().__init__(
            f"The stream would have {actual} UTF-16 code units; {limit} are allowed (FANFARE_STREAM_MAX_LENGTH)."
        )
        self.actual = actual
        self.limit = limit


class TooManyStreams(StreamError):
    """Too many streams are open in the channel or the application: `actual`, and `limit` are allowed."""

    code = "too_many_streams"

    def __init__(self, actual: int, limit: int) -> None:
        super().__init__(f"{actual} streams are open; {limit} are allowed (FANFARE_STREAM_MAX_IN_CHANNEL and _IN_APP).")
        self.actual = actual
        self.limit = limit


class TooManyMembers(PublishError):
    """A presence channel has `actual` members and `limit` are allowed."""

    code = "too_many_members"

    def __init__(self, channel: str, actual: int, limit: int) -> None:
        super().__init__(f"{channel} has {actual} members; {limit} are allowed (max_presence_members).")
        self.actual = actual
        self.limit = limit


class RuleError(FanfareError):
    """An authorization rule or the `@user_data` function of the project is wrong."""

    code = "rule_error"


class InvalidPattern(RuleError):
    """A rule's pattern cannot be parsed, or names channels that anyone may join."""

    code = "invalid_pattern"


class InvalidRule(RuleError):
    """A rule's function cannot take the parameters of its pattern, or another rule has the same pattern."""

    code = "invalid_rule"


class InvalidAnswer(RuleError):
    """A rule returned a value of the wrong type, or a member that the server would refuse."""

    code = "invalid_answer"


class InvalidBroadcast(FanfareError):
    """A declaration of `broadcast` is wrong, or an object's model has none."""

    code = "invalid_broadcast"


class InvalidJob(FanfareError):
    """A declaration of `background` or `periodic` is wrong."""

    code = "invalid_job"


class DecryptionFailed(FanfareError):
    """The master key cannot decrypt this data."""

    code = "decryption_failed"


class AccessRefused(FanfareError):
    """A visitor may not join a channel or sign in. `status` is that of the HTTP response."""

    status = 403

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class MalformedRequest(AccessRefused):
    """A request to an auth endpoint lacks a parameter, or has one of a wrong form."""

    status = 400
