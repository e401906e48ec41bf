"""Channel rules: who may join a private or a presence channel, said in Python.

A rule is a function in the `channels` module of any app. It gets the user, the parameters of its pattern by name, and
the request if it has a parameter `request`:

    @channel("private-orders-{order_id:int}")
    def may_see_order(user, order_id):
        return user.is_authenticated and Order.objects.filter(pk=order_id, customer=user).exists()

What it may answer stands in `apps.realtime.authorization`. It may be an `async def`.

Where several patterns fit a name, the most literal one is asked: the one with the most characters outside of
parameters, then the one with the fewest parameters that match almost anything (`int` and `uuid` are narrow), then the
one that was registered first. Only one rule is asked. A channel without a rule cannot be joined."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from asgiref.sync import async_to_sync, iscoroutinefunction
from django.http import HttpRequest

from apps.realtime import errors, patterns

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Rule:
    """A pattern and the function that is asked about its channels."""

    pattern: patterns.Pattern
    function: Callable[..., Any]
    wants_request: bool

    @property
    def name(self) -> str:
        return f"{self.function.__module__}.{self.function.__qualname__}"

    def ask(self, user: Any, parameters: dict[str, Any], request: HttpRequest) -> Any:
        """The function's answer, as it is. Blocks; not for an event loop.

        `user` is loaded and not lazy: a coroutine could not load it.
        """
        if self.wants_request:
            parameters = {**parameters, "request": request}
        if iscoroutinefunction(self.function):
            return async_to_sync(self.function)(user, **parameters)
        return self.function(user, **parameters)


class RuleSet:
    """Rules in the order in which they are asked."""

    def __init__(self) -> None:
        self._rules: list[Rule] = []

    def add(self, pattern: str, function: Callable[..., Any]) -> None:
        """Raises InvalidPattern or InvalidRule. The same function again replaces itself (its module was reloaded)."""
        rule = Rule(patterns.Pattern(pattern), function, _takes(function, "request"))
        _check_signature(rule)
        for other in self._rules:
            if other.pattern.shape == rule.pattern.shape:
                if other.name != rule.name:
                    raise errors.InvalidRule(f"{rule.name}: {other.name} decides about {pattern!r} already.")
                self._rules.remove(other)
                break
        self._rules.append(rule)
        self._rules.sort(key=lambda rule: (-rule.pattern.literals, rule.pattern.open_parameters))

    def find(self, channel: str) -> tuple[Rule, dict[str, Any]] | None:
        """The rule that decides about a channel, with the values of its parameters."""
        for rule in self._rules:
            parameters = rule.pattern.match(channel)
            if parameters is not None:
                return rule, parameters
        return None


registered = RuleSet()  # those of the project, filled when Django starts


def channel(pattern: str) -> Callable[[Function], Function]:
    """Make the function decide who joins the channels of this pattern.

    Raises InvalidPattern or InvalidRule, when the module is imported.
    """

    def register(function: Function) -> Function:
        registered.add(pattern, function)
        return function

    return register


def _takes(function: Callable[..., Any], name: str) -> bool:
    return name in inspect.signature(function).parameters


def _check_signature(rule: Rule) -> None:
    """A rule that cannot be called is found when the project starts, not when the first visitor comes."""
    signature = inspect.signature(rule.function)
    first = next(iter(signature.parameters), None)
    if first is None or first == "request" or first in rule.pattern.parameters:
        raise errors.InvalidRule(f"{rule.name}: the first parameter of a channel rule is the user.")
    if "request" in rule.pattern.parameters:
        raise errors.InvalidRule(f"{rule.name}: a parameter of a pattern cannot be called 'request'.")
    given = dict.fromkeys(rule.pattern.parameters)
    if rule.wants_request:
        given["request"] = None
    try:
        signature.bind(None, **given)
    except TypeError as error:
        raise errors.InvalidRule(f"{rule.name} does not fit {rule.pattern.text!r}: {error}.") from error
