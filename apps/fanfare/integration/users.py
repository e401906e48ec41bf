"""Users: their ids in the protocol, the members of presence channels, and the sign-in of a page.

The protocol knows a user by a string. For a Django user that is the primary key: `str(user.pk)`.

`/pusher/user-auth` signs the id and the info of a visitor when a page calls `pusher.signin()`: by default those of the
Django user of the session, with the info `{"name": str(user)}`. A function with the decorator `@user_data`, in the
`channels` module of any app, replaces that default. What it may return:

| returned value   | the visitor signs in as                                                       |
|------------------|-------------------------------------------------------------------------------|
| `False`, `None`  | the request gets 403                                                          |
| `True`           | the Django user, with the info `{"name": str(user)}`                          |
| a `dict`         | the Django user, with this info                                               |
| a `UserData`     | the user that it describes, with or without an account                        |

Source: Pusher Channels, "Authenticating users", "Watchlist events".
"""

from __future__ import annotations

import inspect
import logging
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, overload

from asgiref.sync import async_to_sync, iscoroutinefunction
from django.apps import apps
from django.conf import settings
from django.core.exceptions import ObjectDoesNotExist, PermissionDenied, ValidationError
from django.http import Http404, HttpRequest

from fanfare import errors
from fanfare.applications import registry
from fanfare.integration import payloads

logger = logging.getLogger("fanfare.integration.auth")

FunctionType = TypeVar("FunctionType", bound=Callable[..., Any])


class HasPrimaryKey(Protocol):
    """A user of Django, or of any other model."""

    @property
    def pk(self) -> Any: ...


@dataclass(frozen=True, slots=True)
class Member:
    """A member of a presence channel, as an authorization rule returns it.

        @channel("presence-room-{room:int}")
        def may_join(user, room):
            return Member(user, {"name": user.first_name})

    `id`: a saved user, or an id of 1 to 128 characters (the application's `max_user_id`); two connections with the same
    id are one member. `info`: a dict that all members of the channel see, None for none. Id and info together have at
    most 2,048 bytes of JSON (`max_member_bytes`). `presence.members()` returns the id as a str.

    Use it for visitors without an account, or to join under another id than that of the signed-in user.
    """

    id: User
    info: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class UserData:
    """A user who signs in, as the `@user_data` function returns it.

        return UserData(user, {"name": user.get_full_name()}, watchlist=user.friends.all())

    `id`: a saved user, or an id of 1 to 128 characters; `publish(to_user=…)` and `presence.is_online()` take the same.
    `info`: a dict that the members of presence channels see, None for none; id and info have at most 2,048 bytes of
    JSON. `watchlist`: users or ids; the page is notified when they come online and go offline (by default the first
    100, the application's `max_watchlist`).

    Wherever a user is an argument, `UserData("guest-7")` stands for an id that is not a primary key.
    """

    id: User
    info: Mapping[str, Any] | None = None
    watchlist: Iterable[User] = ()


User = HasPrimaryKey | Member | UserData | str | int | uuid.UUID
"""A saved user, its primary key, or a `UserData` or `Member` with an id of the project's own."""


# -- ids ---------------------------------------------------------------------------------------------------------------


def user_id(user: User) -> str:
    """The id of a user in the protocol. Raises InvalidUser.

    A str must be a possible primary key of the user model: a name in its place would match no connection and fail
    silently. A project with a `@user_data` function has its own ids, which are not checked.
    """
    if isinstance(user, UserData | Member):
        return _own_id(user.id)
    value = getattr(user, "pk", user)
    if value is None:
        raise errors.InvalidUser(
            f"{user!r} has no primary key. Save it first, or check user.is_authenticated: an anonymous user has no id."
        )
    if isinstance(value, bool) or (value is user and not isinstance(value, str | int | uuid.UUID)):
        raise errors.InvalidUser(
            f"A user is a model instance or its primary key; {value!r} is of type {type(user).__name__}."
        )
    text = str(value)
    if not text:
        raise errors.InvalidUser('The user id is "", which is no id: pass a user or its primary key.')
    return _primary_key(text) if value is user and isinstance(value, str) and not registered.is_set else text


def named(text: str) -> User:
    """The user that an operator names: by a primary key, or by an id of the project's own."""
    try:
        return user_id(text)
    except errors.InvalidUser:
        return UserData(text)


def _own_id(value: User) -> str:
    """An id that the project chose: any string without NUL, or a user's."""
    if isinstance(value, str) and "\0" in value:
        raise errors.InvalidUser(f"The user id {value!r} contains the character NUL.")
    return value if isinstance(value, str) and value else user_id(value)


def _primary_key(text: str) -> str:
    """The id in the form of `str(user.pk)`: a UUID without dashes gets them."""
    try:
        model = apps.get_model(settings.AUTH_USER_MODEL, require_ready=False)
    except (LookupError, ValueError):  # a project without a user model
        return text
    try:
        return str(model._meta.pk.to_python(text))
    except (ValidationError, ValueError, TypeError):
        raise errors.InvalidUser(
            f"{text!r} is not a primary key of {model._meta.label}. Pass the user, "
            f"{model.__name__}.objects.get(…), or its pk; for an id that is none of Django's, UserData({text!r})."
        ) from None


# -- members and signed-in users as they are signed --------------------------------------------------------------------


def member_of(user: Any, answer: Mapping[str, Any] | bool) -> Member:
    """A signed-in Django user, with the info that a rule returned; True stands for `{"name": str(user)}`."""
    return Member(user, answer if isinstance(answer, Mapping) else {"name": str(user)})


def channel_data(member: Member, limits: registry.Limits) -> str:
    """A member as the JSON text that is signed and sent: `{"user_id": "42", "user_info": {…}}`.

    Raises InvalidAnswer for a member that the server would refuse: an id that is empty or too long, an info without a
    JSON form or too large.
    """
    data: dict[str, Any] = {"user_id": _checked_id("The id of a Member", member.id, limits)}
    if member.info is not None:
        data["user_info"] = _checked_info(member.info)
    return _bounded_text(data, limits.max_member_bytes)


def _checked_id(what: str, value: Any, limits: registry.Limits) -> str:
    try:
        text = _own_id(value)
    except errors.InvalidUser as error:
        raise errors.InvalidAnswer(f"{what} is wrong: {error}") from error
    if len(text) > limits.max_user_id:
        raise errors.InvalidAnswer(
            f"{what} has {len(text)} characters; the application allows {limits.max_user_id} (max_user_id)."
        )
    return text


def _checked_info(info: Any) -> dict[str, Any]:
    if not isinstance(info, Mapping):
        raise errors.InvalidAnswer(
            f'The info is a dict, such as {{"name": "Ann"}}, or None, not {type(info).__name__}.'
        )
    return dict(info)


def _bounded_text(data: dict[str, Any], limit: int) -> str:
    """JSON of at most `limit` bytes. Raises InvalidAnswer."""
    shown = next(iter(data.values()))
    try:
        text = payloads.json_text(data)
    except TypeError as error:
        raise errors.InvalidAnswer(f"The info of {shown!r} has no JSON form: {error}.") from error
    size = len(text.encode())
    if size > limit:
        raise errors.InvalidAnswer(
            f"The id and the info of {shown!r} have {size} bytes of JSON; the application allows {limit} "
            "(max_member_bytes)."
        )
    return text


# -- functions of the project ------------------------------------------------------------------------------------------


class ProjectFunction:
    """An authorization rule or the `@user_data` function, as the project wrote it.

    It is called with the user, the parameters of its pattern by name, and the request if it has a parameter `request`.
    It may be an `async def`. Raising `PermissionDenied`, `Http404` or a model's `DoesNotExist` refuses the visitor.
    """

    __slots__ = ("name", "original", "wants_request")

    def __init__(self, function: Callable[..., Any], parameters: Sequence[str] = ()) -> None:
        """`parameters`: the names of its arguments besides the user. Raises InvalidRule if it does not accept them, so
        that the error appears when the project starts and not at the first visitor."""
        self.original = function
        self.name = f"{function.__module__}.{function.__qualname__}"
        signature = inspect.signature(function)
        self.wants_request = "request" in signature.parameters
        shown = f"def {function.__name__}({', '.join(['user', *parameters])})"
        first = next(iter(signature.parameters), None)
        if first is None or first == "request" or first in parameters:
            raise errors.InvalidRule(f"The first parameter of {self.name} is the user: {shown}.")
        if "request" in parameters:
            raise errors.InvalidRule(
                f"{self.name}: a pattern cannot have a parameter {{request}}, since that name is the HTTP request's."
            )
        given: dict[str, Any] = dict.fromkeys([*parameters, "request"] if self.wants_request else parameters)
        try:
            signature.bind(None, **given)
        except TypeError as error:
            raise errors.InvalidRule(f"{self.name} cannot be called as it must be ({error}): write {shown}.") from error

    def __call__(self, user: Any, parameters: Mapping[str, Any], request: HttpRequest | None) -> Any:
        """The returned value. Raises AccessRefused if the function refuses as a view does. Blocks."""
        more = {"request": request} if self.wants_request else {}
        call = async_to_sync(self.original) if iscoroutinefunction(self.original) else self.original
        try:
            return call(user, **parameters, **more)
        except (PermissionDenied, Http404, ObjectDoesNotExist) as error:
            raise errors.AccessRefused("refused", f"{self.name} raised {type(error).__name__}: {error}") from error


class Anonymous:
    """The visitor of a project without django.contrib.auth."""

    pk = id = None
    is_authenticated = is_active = is_staff = is_superuser = False
    is_anonymous = True

    def __str__(self) -> str:
        return "AnonymousUser"


def visitor(request: HttpRequest) -> Any:
    """The visitor: the user of the session or of a token of Django REST framework, or an anonymous user.

    The user is loaded, not lazy: a rule that is a coroutine could not load it.
    """
    user = getattr(request, "user", None) or _anonymous()  # `or` evaluates the lazy user, which loads it
    if not user.is_authenticated and "Authorization" in request.headers:
        return _token_user(request) or user
    return user


def _anonymous() -> Any:
    if not apps.is_installed("django.contrib.auth"):
        return Anonymous()
    from django.contrib.auth.models import AnonymousUser

    return AnonymousUser()


def _token_user(request: HttpRequest) -> Any:
    """The user that REST framework's DEFAULT_AUTHENTICATION_CLASSES find, or None.

    REST framework authenticates in its own views only, so `request.user` is anonymous here.
    """
    if not apps.is_installed("rest_framework"):
        return None
    from rest_framework import exceptions
    from rest_framework.request import Request
    from rest_framework.settings import api_settings

    authenticators = [make() for make in api_settings.DEFAULT_AUTHENTICATION_CLASSES]
    try:
        user = Request(request, authenticators=authenticators).user
    except exceptions.APIException as error:
        # Not an error: browsers repeat the Basic credentials of a staging site.
        logger.info("REST framework does not accept the Authorization header: %s", error)
        return None
    return user if user is not None and user.is_authenticated else None


# -- sign-in -----------------------------------------------------------------------------------------------------------


class UserDataSource:
    """The `@user_data` function of the project, if there is one."""

    def __init__(self) -> None:
        self._function: ProjectFunction | None = None

    @property
    def is_set(self) -> bool:
        return self._function is not None

    def use(self, function: Callable[..., Any]) -> None:
        """Raises InvalidRule. A function that is registered again replaces itself: its module was reloaded."""
        added = ProjectFunction(function)
        if self._function is not None and self._function.name != added.name:
            raise errors.InvalidRule(
                f"@user_data is on {added.name} and on {self._function.name}; a project has one such function."
            )
        self._function = added

    def ask(self, request: HttpRequest) -> UserData:
        """The user as which the visitor signs in. Raises AccessRefused, or InvalidAnswer for a wrong return value."""
        user = visitor(request)
        answer: Any = True
        name = "the default of /pusher/user-auth"
        if self._function is not None:
            answer, name = self._function(user, {}, request), self._function.name
        if isinstance(answer, UserData):
            return answer
        if answer is None or answer is False:
            raise errors.AccessRefused("refused", f"{name} returned {answer}.")
        if answer is not True and not isinstance(answer, Mapping):
            raise errors.InvalidAnswer(
                f"{name} returned {_described(answer)}; return True, False, a dict or UserData(id, info)."
            )
        if not user.is_authenticated:
            raise errors.AccessRefused(
                "anonymous", f"The visitor is not signed in with Django, and {name} names no other user."
            )
        member = member_of(user, answer)
        return UserData(member.id, member.info)


registered = UserDataSource()  # filled when Django imports the `channels` modules


@overload
def user_data(function: FunctionType, /) -> FunctionType: ...


@overload
def user_data() -> Callable[[FunctionType], FunctionType]: ...


def user_data(function: Any = None, /) -> Any:
    """Make the function name the user of a visitor who signs in. Write it in the `channels` module of any app.

        @user_data
        def who(user):
            return UserData(user, {"name": user.get_full_name()}, watchlist=user.friends.all())

    The function takes the user, and the request if it has a parameter `request`; it may be an `async def`. It returns
    True (the Django user), False or None (403), a dict (the Django user with this info), or a `UserData`.

    Raises InvalidRule at import if it cannot be called like this, or if the project has another such function.
    Source: Pusher Channels, "Authenticating users".
    """

    def register(function: FunctionType) -> FunctionType:
        registered.use(function)
        return function

    return register if function is None else register(function)


def authenticate(request: HttpRequest, limits: registry.Limits) -> str:
    """The visitor as the JSON text that is signed: `{"id": "42", "user_info": {…}, "watchlist": ["7"]}`.

    Raises AccessRefused, or InvalidAnswer for a user that the server would refuse.
    """
    user = registered.ask(request)
    data: dict[str, Any] = {"id": _checked_id("The id of UserData", user.id, limits)}
    if isinstance(user.watchlist, str):
        raise errors.InvalidAnswer(f"The watchlist is the str {user.watchlist!r}; write [{user.watchlist!r}].")
    watchlist = [_checked_id("An id in the watchlist", watched, limits) for watched in user.watchlist]
    if user.info is not None:
        data["user_info"] = _checked_info(user.info)
    text = _bounded_text(data, limits.max_member_bytes)
    return payloads.json_text({**data, "watchlist": watchlist}) if watchlist else text


def _described(value: Any) -> str:
    return f"{value!r}" if isinstance(value, int | float | str) else type(value).__name__
