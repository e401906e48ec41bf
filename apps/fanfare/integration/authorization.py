"""From a rule's answer to a decision.

| answer           | private channel | presence channel                                                       |
|------------------|-----------------|------------------------------------------------------------------------|
| `False`, `None`  | refused         | refused                                                                |
| `True`           | joins           | joins as the signed-in user, with the info `{"name": str(user)}`       |
| a `dict`         | a mistake       | joins as the signed-in user, with this info                            |
| a `Member`       | a mistake       | joins as this member, signed in or not                                 |
| anything else    | a mistake       | a mistake                                                              |

A rule that raises `PermissionDenied`, `Http404` or a model's `DoesNotExist` refuses. A mistake raises InvalidAnswer:
nobody joins because an object happened to be true.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.http import HttpRequest

from fanfare.applications import registry
from fanfare.integration import errors, members, patterns, rules, visitors
from fanfare.protocol import names


def authorize(request: HttpRequest, channel: str, limits: registry.Limits) -> str | None:
    """Let the visitor into the channel: the member's `channel_data` for a presence channel, None for a private one.

    Raises AccessRefused, or RuleError where the rule itself is at fault.
    """
    if not channel.startswith(patterns.GUARDED_PREFIXES):
        raise errors.AccessRefused("public_channel", f"{channel} is a public channel: it is joined without asking.")
    found = rules.registered.find(channel)
    if found is None:
        raise errors.AccessRefused(
            "no_rule", f"No rule fits {channel}. Write one with @channel in an app's channels.py."
        )
    rule, parameters = found
    user = visitors.user_of(request)
    answer = rule.function.ask(user, parameters, request)
    if answer is None or answer is False:
        raise errors.AccessRefused("refused", f"{rule.name} answered {answer} for {channel}.")
    if names.is_presence(channel):
        return members.channel_data(_member(answer, user, rule), limits)
    if answer is not True:
        kind = type(answer).__name__
        raise errors.InvalidAnswer(f"{rule.name} answered {kind}; for a private channel it is True or False.")
    return None


def _member(answer: Any, user: Any, rule: rules.Rule) -> members.Member:
    if isinstance(answer, members.Member):
        return answer
    if answer is not True and not isinstance(answer, Mapping):
        kind = type(answer).__name__
        raise errors.InvalidAnswer(
            f"{rule.name} answered {kind}; for a presence channel it is True, False, a dict or a Member."
        )
    if not user.is_authenticated:
        raise errors.AccessRefused(
            "anonymous",
            f"{rule.name} lets a visitor in who is not signed in, so there is no user to be the member. "
            "Answer False, or Member(id, info) to say who it is.",
        )
    return members.of_user(user, answer)
