"""The exceptions of this package.

    RealtimeError
    ├── PublishError            the call cannot be done as it was made; nothing was sent
    │   ├── InvalidName         a channel, an event, a socket id or an idempotency key has a wrong form
    │   ├── InvalidUser         there is no such user: not signed in, not saved, or not a user at all
    │   ├── InvalidTarget       neither a channel nor a user is given, or both
    │   ├── InvalidTiming       at once, and through the outbox
    │   ├── InvalidLimit        so many events are not answered at once
    │   ├── UnencodableData     the data has no JSON form
    │   ├── DataTooLarge        the data is over the application's limit
    │   ├── NoApplication       there is no such application, or it is disabled
    │   ├── NoMasterKey         the channel is encrypted, and the project has no key
    │   └── CalledOnEventLoop   publish() would block the event loop; await apublish() instead
    ├── RuleError               a channel rule is wrong; only its author can mend it
    │   ├── InvalidPattern      the pattern cannot be read, or names channels that need no rule
    │   ├── InvalidRule         the function cannot take what the pattern gives, or the pattern is taken
    │   └── InvalidAnswer       the rule answered with something that is no answer
    ├── InvalidBroadcast        a model cannot be broadcast in the way that it says
    ├── Undecipherable          data of an encrypted channel that the master key cannot read
    └── AccessRefused           this visitor may not join this channel
        └── MalformedRequest    the page asked for it in a way that cannot be understood

`fanfare.engine.errors.EngineUnavailable`: the log could not be written. `fanfare.jobs.errors.InvalidJob`: a background
job is declared wrongly.
"""

from __future__ import annotations


class RealtimeError(Exception):
    """Base class. `code` is for machines, the message for people."""

    code = "realtime_error"


class PublishError(RealtimeError):
    """The call cannot be done as it was made. Trying again does not help."""

    code = "publish_error"


class InvalidName(PublishError):
    """A channel name, an event name, a socket id or an idempotency key has a wrong form."""

    code = "invalid_name"


class InvalidUser(PublishError):
    """There is no such user: not signed in, not saved, or not a user at all."""

    code = "invalid_user"


class InvalidTarget(PublishError):
    """An event goes to a channel or to a user."""

    code = "invalid_target"


class InvalidTiming(PublishError):
    """An event leaves at once, or with its transaction through the outbox."""

    code = "invalid_timing"


class InvalidLimit(PublishError):
    """So many events are not answered at once."""

    code = "invalid_limit"


class UnencodableData(PublishError):
    """The data has no JSON form."""

    code = "unencodable_data"


class DataTooLarge(PublishError):
    """`size` and `limit` are bytes of the data's UTF-8 text."""

    code = "data_too_large"

    def __init__(self, event: str, size: int, limit: int) -> None:
        super().__init__(f"The data of {event!r} is {size} bytes; the application allows {limit}.")
        self.size = size
        self.limit = limit


class NoApplication(PublishError):
    """There is no such application, or it is disabled."""

    code = "no_application"


class NoMasterKey(PublishError):
    """The channel is encrypted, and the project has no key to do it with."""

    code = "no_master_key"


class CalledOnEventLoop(PublishError):
    """publish() waits for the log, which would stop everything else on this event loop."""

    code = "called_on_event_loop"


class RuleError(RealtimeError):
    """A channel rule is wrong; only its author can mend it."""

    code = "rule_error"


class InvalidPattern(RuleError):
    """The pattern cannot be read, or names channels that need no rule."""

    code = "invalid_pattern"


class InvalidRule(RuleError):
    """The function cannot take what the pattern gives, or the pattern is taken."""

    code = "invalid_rule"


class InvalidAnswer(RuleError):
    """The rule answered with something that is no answer."""

    code = "invalid_answer"


class InvalidBroadcast(RealtimeError):
    """A model cannot be broadcast in the way that it says; only its author can mend it."""

    code = "invalid_broadcast"


class Undecipherable(RealtimeError):
    """Data of an encrypted channel that the master key cannot read."""

    code = "undecipherable"


class AccessRefused(RealtimeError):
    """This visitor may not join. The message is for the developer of the page, `status` for the HTTP answer."""

    status = 403

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class MalformedRequest(AccessRefused):
    """The page asked for it in a way that cannot be understood."""

    status = 400
