"""Visitors, and the functions of the project that are asked about them.

Such a function gets the user first, then parameters by name, then the request if it has a parameter `request`. It may
be an `async def`. Where it raises `PermissionDenied`, `Http404` or a model's `DoesNotExist`, it refuses, as a view
would.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from asgiref.sync import async_to_sync, iscoroutinefunction
from django.contrib.auth.models import AnonymousUser
from django.core.exceptions import ObjectDoesNotExist, PermissionDenied
from django.http import Http404, HttpRequest

from fanfare.integration import errors

FunctionType = TypeVar("FunctionType", bound=Callable[..., Any])


def user_of(request: HttpRequest) -> Any:
    """The visitor: Django's user, maybe an anonymous one. It is loaded and not lazy: a coroutine could not load it."""
    return getattr(request, "user", None) or AnonymousUser()  # `or` asks for its truth, which loads it


class Function:
    """One function of the project, as it was written there."""

    __slots__ = ("_wants_request", "name", "original")

    def __init__(self, function: Callable[..., Any], parameters: Sequence[str] = ()) -> None:
        """`parameters`: what it will be given beside the user. Raises InvalidRule if it cannot take that: found when
        the project starts, not when the first visitor comes."""
        self.original = function
        self.name = f"{function.__module__}.{function.__qualname__}"
        signature = inspect.signature(function)
        self._wants_request = "request" in signature.parameters
        first = next(iter(signature.parameters), None)
        if first is None or first == "request" or first in parameters:
            raise errors.InvalidRule(f"{self.name}: the first parameter is the user.")
        if "request" in parameters:
            raise errors.InvalidRule(f"{self.name}: a parameter of a pattern cannot be called 'request'.")
        given: dict[str, Any] = dict.fromkeys([*parameters, "request"] if self._wants_request else parameters)
        try:
            signature.bind(None, **given)
        except TypeError as error:
            raise errors.InvalidRule(f"{self.name} does not fit: {error}.") from error

    def ask(self, user: Any, parameters: Mapping[str, Any], request: HttpRequest) -> Any:
        """Its answer, as it is. Raises AccessRefused where it refuses as a view does. Blocks; not for an event loop."""
        more = {"request": request} if self._wants_request else {}
        call = async_to_sync(self.original) if iscoroutinefunction(self.original) else self.original
        try:
            return call(user, **parameters, **more)
        except (PermissionDenied, Http404, ObjectDoesNotExist) as error:
            raise errors.AccessRefused("refused", f"{self.name} raised {type(error).__name__}: {error}") from error
