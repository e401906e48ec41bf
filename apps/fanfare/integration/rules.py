"""Channel rules: who may join a private or a presence channel, said in Python.

A rule is a function in the `channels` module of any app. It gets the user, the parameters of its pattern by name, and
the request if it has a parameter `request`:

    @channel("private-orders-{order_id:int}")
    def may_see_order(user, order_id):
        return user.is_authenticated and Order.objects.filter(pk=order_id, customer=user).exists()

What it may answer stands in `fanfare.integration.authorization`. It may be an `async def`.

Where several patterns fit a name, the most literal one is asked: the one with the most characters outside of
parameters, then the one with the fewest parameters that match almost anything (`int` and `uuid` are narrow), then the
one that was registered first. Only one rule is asked. A channel without a rule cannot be joined."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fanfare.integration import errors, patterns, visitors


@dataclass(frozen=True, slots=True)
class Rule:
    """A pattern and the function that is asked about its channels."""

    pattern: patterns.Pattern
    function: visitors.Function

    @property
    def name(self) -> str:
        return self.function.name


class RuleSet:
    """Rules in the order in which they are asked."""

    def __init__(self) -> None:
        self._rules: list[Rule] = []

    def add(self, pattern: str, function: Callable[..., Any]) -> None:
        """Raises InvalidPattern or InvalidRule. The same function again replaces itself (its module was reloaded)."""
        compiled = patterns.Pattern(pattern)
        rule = Rule(compiled, visitors.Function(function, compiled.parameters))
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


def channel(pattern: str) -> Callable[[visitors.FunctionType], visitors.FunctionType]:
    """Make the function decide who joins the channels of this pattern.

    Raises InvalidPattern or InvalidRule, when the module is imported.
    """

    def register(function: visitors.FunctionType) -> visitors.FunctionType:
        registered.add(pattern, function)
        return function

    return register
