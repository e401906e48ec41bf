"""Who a connection is: what `/pusher/user-auth` signs when a page calls `pusher.signin()`.

Without any code of the project it is the signed-in user of Django: the primary key as its id, `{"name": str(user)}` as
its info. A function decorated with `@user_data`, in the `channels` module of any app, says it in another way. There is
one in a project.

    @user_data
    def who(user):
        return UserData(user.pk, {"name": user.get_full_name()}, watchlist=user.friends.all())

It gets the user, and the request if it has a parameter `request`; it may be an `async def`. Its answers:

| answer           | the visitor                                                               |
|------------------|---------------------------------------------------------------------------|
| `False`, `None`  | is refused                                                                |
| `True`           | is the signed-in user, with the info `{"name": str(user)}`                |
| a `dict`         | is the signed-in user, with this info                                     |
| a `UserData`     | is this user, signed in with Django or not                                |

Source: Pusher Channels, "Authenticating users", "Watchlist events".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from django.http import HttpRequest

from fanfare.applications import registry
from fanfare.integration import encoding, errors, members, users, visitors


@dataclass(frozen=True, slots=True)
class UserData:
    """Somebody who signs in. `id`: as in `publish(to_user=…)`. `info`: what members of presence channels see.
    `watchlist`: the users whose coming and going the client hears of.
    """

    id: users.User
    info: Mapping[str, Any] | None = None
    watchlist: Iterable[users.User] = ()


class Source:
    """The function that says who a visitor is, if the project has one."""

    def __init__(self) -> None:
        self._function: visitors.Function | None = None

    def use(self, function: Callable[..., Any]) -> None:
        """Raises InvalidRule. The same function again replaces itself (its module was reloaded)."""
        mine = visitors.Function(function)
        if self._function is not None and self._function.name != mine.name:
            raise errors.InvalidRule(f"{mine.name}: {self._function.name} says who signs in already.")
        self._function = mine

    def ask(self, request: HttpRequest) -> UserData:
        """Who the visitor is. Raises AccessRefused, or InvalidAnswer where the function is at fault."""
        user = visitors.user_of(request)
        answer: Any = True
        name = "Django's session"
        if self._function is not None:
            answer, name = self._function.ask(user, {}, request), self._function.name
        if isinstance(answer, UserData):
            return answer
        if answer is None or answer is False:
            raise errors.AccessRefused("refused", f"{name} answered {answer}.")
        if answer is not True and not isinstance(answer, Mapping):
            kind = type(answer).__name__
            raise errors.InvalidAnswer(f"{name} answered {kind}; it is True, False, a dict or a UserData.")
        if not user.is_authenticated:
            raise errors.AccessRefused("anonymous", f"{name}: nobody is signed in, so there is no user to be.")
        member = members.of_user(user, answer)
        return UserData(member.id, member.info)


registered = Source()  # that of the project, filled when Django starts


def user_data(function: visitors.FunctionType) -> visitors.FunctionType:
    """Make the function say who signs in. Raises InvalidRule, when the module is imported."""
    registered.use(function)
    return function


def authenticate(request: HttpRequest, limits: registry.Limits) -> str:
    """The visitor as the JSON text that is signed: `{"id": "42", "user_info": {…}, "watchlist": ["7"]}`.

    Raises AccessRefused, or InvalidAnswer if the server would refuse what the project's function answered.
    """
    who = registered.ask(request)
    try:
        user_id, watchlist = users.user_id(who.id), [users.user_id(watched) for watched in who.watchlist]
    except errors.InvalidUser as error:
        raise errors.InvalidAnswer(f"Somebody who signs in, or is watched, has no id: {error}") from error
    data: dict[str, Any] = {"id": members.checked_id(user_id, limits)}
    if who.info is not None:
        data["user_info"] = members.checked_info(who.info)
    text = members.bounded_text(data, limits.max_member_bytes)
    if not watchlist:
        return text
    return encoding.json_text({**data, "watchlist": [members.checked_id(one, limits) for one in watchlist]})
