"""update_message() and delete_message(): new versions of messages that a channel has kept.

    for event in history.events("private-chat-7"):
        fanfare.update_message("private-chat-7", event.id, {"text": "better"}, by=request.user)

The message keeps its position in the history. With `by`, the rule of the channel decides:

    @fanfare.may_revise("private-chat-{room}")
    def may_edit(user, room, event):
        return json.loads(event.data)["author"] == user.pk
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from asgiref.sync import sync_to_async

from fanfare import errors
from fanfare.applications import registry
from fanfare.engine import interface
from fanfare.hub import revisions
from fanfare.integration import history, payloads, publishing, queries, rules, target, users
from fanfare.protocol import names, publications

__all__ = ["adelete_message", "aupdate_message", "delete_message", "may_revise", "update_message"]

registered = rules.RuleSet()  # filled when Django imports the `channels` modules


def may_revise(pattern: str) -> Callable[[users.FunctionType], users.FunctionType]:
    """Make the function the rule that says who may change messages of a channel, for calls with `by`.

    It takes the user, the parameters of the pattern by name, and `event`, the message as `history.events` has it; it
    returns True or False. Write it in the `channels` module of any app. See `channel` for patterns.

    Raises InvalidPattern or InvalidRule when the module is imported.
    """

    def register(function: users.FunctionType) -> users.FunctionType:
        registered.add(pattern, function, more=("event",))
        return function

    return register


def update_message(
    channel: str, message_id: str, data: Any, *, by: users.User | None = None, app: target.App = None
) -> bool:
    """Give a kept message new data. Subscribers get `fanfare:revised`. False: the message is not kept any more.

    `message_id`: `history.Event.id`. `data`: as for `publish`. `by`: the user who changes it, whom the rule of
    `may_revise` must admit; None for the project itself. `app`: an application or its id.

    Raises AccessRefused, UnencodableData, DataTooLarge, InvalidName, NoApplication, EngineUnavailable, and
    CalledOnEventLoop in a coroutine: use `await aupdate_message(…)`.
    """
    publishing.refuse_event_loop("update_message", "aupdate_message")
    return _revise(channel, message_id, by, app, _text(channel, data))


def delete_message(channel: str, message_id: str, *, by: users.User | None = None, app: target.App = None) -> bool:
    """Delete a kept message. Subscribers get `fanfare:deleted`. See `update_message`."""
    publishing.refuse_event_loop("delete_message", "adelete_message")
    return _revise(channel, message_id, by, app, None)


async def aupdate_message(
    channel: str, message_id: str, data: Any, *, by: users.User | None = None, app: target.App = None
) -> bool:
    """`update_message` for coroutines."""
    return await sync_to_async(_revise)(channel, message_id, by, app, _text(channel, data))


async def adelete_message(
    channel: str, message_id: str, *, by: users.User | None = None, app: target.App = None
) -> bool:
    """`delete_message` for coroutines."""
    return await sync_to_async(_revise)(channel, message_id, by, app, None)


def _revise(channel: str, message_id: str, by: users.User | None, app: target.App, text: str | None) -> bool:
    """`text`: the new data; None deletes the message."""
    application = target.application(app)
    queries.check_channel(channel, application.limits)
    try:
        position = interface.Position.parse(message_id)
    except (ValueError, TypeError) as error:
        raise errors.InvalidName(f"{message_id!r} is not the id of a message: {error}.") from error
    if text is not None:
        _check_size(application, channel, text)
    engine = target.engine()
    with engine.queries() as asked:
        entry = revisions.find(asked, application.id, channel, position)
    if entry is None:
        return False
    if by is not None:
        _check_allowed(channel, by, history.Event.of(entry, position.epoch))
    author = revisions.Author(None if by is None else users.user_id(by), revisions.now())
    sealed = names.is_encrypted(channel)
    notice = revisions.notice_data(position, revisions.event_of(entry), text, author)
    revision = revisions.revision(
        entry,
        position,
        payloads.encrypt(channel, text) if sealed and text is not None else text,
        payloads.encrypt(channel, notice) if sealed else notice,
        author,
    )
    return engine.revise(revision) is not None


def _text(channel: str, data: Any) -> str:
    try:
        return data if isinstance(data, str) else payloads.json_text(data)
    except TypeError as error:
        raise errors.UnencodableData(f"The data for a message of {channel} has no JSON form: {error}.") from error


def _check_size(application: registry.Application, channel: str, text: str) -> None:
    try:
        publications.check_data(text, application.limits)
    except UnicodeEncodeError as error:
        raise errors.UnencodableData(f"The data for a message of {channel} has no JSON form: {error}.") from error
    except publications.DataTooLarge as error:
        raise errors.DataTooLarge(channel, error.actual, error.limit) from None


def _check_allowed(channel: str, by: users.User, event: history.Event) -> None:
    found = registered.find(channel)
    if found is None:
        raise errors.AccessRefused(
            "no_rule",
            f'No rule of may_revise matches {channel}: write one, @may_revise("{channel}"), in a channels.py.',
        )
    rule, parameters = found
    if rule.function(by, {**parameters, "event": event}, None) is not True:
        raise errors.AccessRefused("refused", f"{rule.name} does not let this user change a message of {channel}.")
