"""Authorization rules: Python functions that authorize visitors for private and presence channels.

A rule is a function with the decorator `@channel(pattern)`, in the `channels` module of any app:

    @channel("private-orders-{order_id:int}")
    def may_see_order(user, order_id):
        return user.is_authenticated and Order.objects.filter(pk=order_id, customer=user).exists()

A parameter of a pattern has one of four types:

    {name}        letters, digits and `_ = @ , . ;`: every character of a channel name except the dash
    {name:slug}   letters, digits, `_` and the dash
    {name:int}    a whole number as `str` writes it (no sign, no leading zero), at most 18 digits; passed as int
    {name:uuid}   a UUID as `str` writes it (lower case, with dashes); passed as UUID

Numbers and UUIDs match in their canonical form only, so that each object has one channel. A channel name must match a
pattern in one way only. Otherwise `private-{org}-{room}` could admit the members of one organization to the rooms of
another. Therefore a dash separates two parameters, and at most one parameter is a slug. An encrypted channel matches
only a pattern that begins with `private-encrypted-`, because its rule gives a key to the visitor.

If several patterns match, the most specific one decides: the pattern with the most literal characters, then the one
with the fewest parameters of the wide types (no type, slug), then the one that was registered first. A channel that no
pattern matches cannot be joined. What a rule may return:

| returned value   | private channel | presence channel                                                       |
|------------------|-----------------|------------------------------------------------------------------------|
| `False`, `None`  | refused         | refused                                                                |
| `True`           | admitted        | admitted as the signed-in user, with the info `{"name": str(user)}`    |
| a `dict`         | InvalidAnswer   | admitted as the signed-in user, with this info                         |
| a `Member`       | InvalidAnswer   | admitted as this member, signed in or not                              |
| a `capability()` | by the token    | admitted as the token's user, with its info                            |
| anything else    | InvalidAnswer   | InvalidAnswer                                                          |

Raising `PermissionDenied`, `Http404` or a model's `DoesNotExist` refuses. Other values are refused even if they are
true, so that a forgotten `.exists()` does not admit every visitor.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from django.http import HttpRequest

from fanfare import errors
from fanfare.applications import registry
from fanfare.integration import rule_cache, tokens, users
from fanfare.protocol import capabilities, names

GUARDED_PREFIXES = (names.PRIVATE_PREFIX, names.PRESENCE_PREFIX)  # other channels are joined without a signature


class _Converter(NamedTuple):
    regex: str
    to_python: Callable[[str], Any]
    is_wide: bool  # a pattern with a narrower one is more specific


_CONVERTERS = {
    "": _Converter(r"[A-Za-z0-9_=@,.;]+", str, True),
    "slug": _Converter(r"[A-Za-z0-9_-]+", str, True),
    # 18 digits fit a database's signed 64-bit integer; a query with 19 may fail.
    "int": _Converter(r"(?:0|[1-9][0-9]{0,17})", int, False),
    "uuid": _Converter(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", uuid.UUID, False),
}
_TYPES = ", ".join(sorted(filter(None, _CONVERTERS)))
_PARAMETER = re.compile(r"\{([^{}]*)\}")
_LITERAL = re.compile(r"\A[-A-Za-z0-9_=@,.;]*\Z")
_PATH_PARAMETER = re.compile(r"<(?:(\w+):)?(\w+)>")  # as in Django's path()


class Pattern:
    """A compiled pattern.

    `parameters`: their names, in order. `literals`: the number of characters outside of parameters. `wide_parameters`:
    the number of parameters of a wide type.
    """

    __slots__ = ("_converters", "_regex", "is_encrypted", "literals", "parameters", "text", "wide_parameters")

    def __init__(self, text: str) -> None:
        """Raises InvalidPattern."""
        if not text.startswith(GUARDED_PREFIXES):
            raise errors.InvalidPattern(
                f"The pattern {text!r} begins with neither 'private-' nor 'presence-'. Any visitor may join other "
                "channels, so they have no rule; a channel with a rule is called 'private-…' or 'presence-…'."
            )
        self.text = text
        self.is_encrypted = names.is_encrypted(text)
        self.literals = 0
        self._converters: dict[str, _Converter] = {}
        regex = []
        # split() with one group returns: literal, parameter, literal, parameter, …, literal
        parts = _PARAMETER.split(text)
        for index, part in enumerate(parts):
            if index % 2:
                regex.append(self._parameter(part))
                continue
            if not _LITERAL.match(part):
                raise errors.InvalidPattern(_wrong_characters(text, part))
            if 0 < index < len(parts) - 1 and "-" not in part:
                raise errors.InvalidPattern(
                    f"The pattern {text!r} has two parameters without a '-' between them, so a channel name could be "
                    "read in two ways."
                )
            self.literals += len(part)
            regex.append(re.escape(part))
        if text.count(":slug}") > 1:
            raise errors.InvalidPattern(
                f"The pattern {text!r} has more than one slug, so a channel name could be read in two ways. Drop "
                "':slug' from all but one: a parameter without a type takes no dash."
            )
        self._regex = re.compile(rf"\A{''.join(regex)}\Z")
        self.parameters = tuple(self._converters)
        self.wide_parameters = sum(converter.is_wide for converter in self._converters.values())

    def _parameter(self, part: str) -> str:
        name, _, kind = part.partition(":")
        if not name.isidentifier() or not name.isascii():
            raise errors.InvalidPattern(
                f"The pattern {self.text!r} has a parameter {{{part}}}; write {{name}} or {{name:TYPE}} with a TYPE of "
                f"{_TYPES}."
            )
        if name in self._converters:
            raise errors.InvalidPattern(f"The pattern {self.text!r} has the parameter {name!r} twice.")
        if kind not in _CONVERTERS:
            swapped = f" Write {{{kind}:{name}}}." if name in _CONVERTERS else ""
            raise errors.InvalidPattern(
                f"The pattern {self.text!r} has a parameter of the type {kind!r}; the types are {_TYPES}.{swapped}"
            )
        converter = self._converters[name] = _CONVERTERS[kind]
        return f"(?P<{name}>{converter.regex})"

    @property
    def shape(self) -> str:
        """Equal for two patterns that match the same names, with any names of parameters."""
        return re.sub(r"\(\?P<\w+>", "(", self._regex.pattern)

    def match(self, channel: str) -> dict[str, Any] | None:
        """The values of the parameters; None if the pattern does not match."""
        found = self._regex.match(channel)
        if found is None or names.is_encrypted(channel) is not self.is_encrypted:
            return None
        return {name: self._converters[name].to_python(value) for name, value in found.groupdict().items()}


def _wrong_characters(text: str, part: str) -> str:
    wrong = f"The pattern {text!r} has {part!r}, which cannot be part of a channel name."
    if _PATH_PARAMETER.search(text):
        right = _PATH_PARAMETER.sub(
            lambda found: f"{{{found[2]}:{found[1]}}}" if found[1] in _CONVERTERS else f"{{{found[2]}}}", text
        )
        return f"{wrong} Parameters stand in braces: write {right!r}."
    if part.endswith("*"):
        return f"{wrong} For any ending write {text.removesuffix('*') + '{name:slug}'!r}."
    return f"{wrong} Parameters stand in braces, as in 'private-orders-{{order_id:int}}'."


# -- the rules of the project ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rule:
    """A pattern and the function that decides about its channels."""

    pattern: Pattern
    function: users.ProjectFunction
    cache_seconds: float | None = None

    @property
    def name(self) -> str:
        return self.function.name


class RuleSet:
    """Rules, the most specific ones first."""

    def __init__(self) -> None:
        self._rules: list[Rule] = []

    def add(
        self,
        pattern: str,
        function: Callable[..., Any],
        *,
        more: Sequence[str] = (),
        cache_seconds: float | None = None,
    ) -> None:
        """Raises InvalidPattern or InvalidRule. A function that is registered again replaces itself: its module was
        reloaded.
        """
        compiled = Pattern(pattern)
        rule = Rule(compiled, users.ProjectFunction(function, (*compiled.parameters, *more)), cache_seconds)
        if cache_seconds is not None:
            _check_is_cacheable(rule)
        for other in self._rules:
            if other.pattern.shape == rule.pattern.shape:
                if other.name != rule.name:
                    raise errors.InvalidRule(
                        f"The pattern {pattern!r} is on {rule.name} and, as {other.pattern.text!r}, on {other.name}; "
                        "one rule decides about a channel."
                    )
                self._rules.remove(other)
                break
        self._rules.append(rule)
        self._rules.sort(key=lambda rule: (-rule.pattern.literals, rule.pattern.wide_parameters))

    def find(self, channel: str) -> tuple[Rule, dict[str, Any]] | None:
        """The rule that decides about a channel, with the values of its parameters."""
        for rule in self._rules:
            parameters = rule.pattern.match(channel)
            if parameters is not None:
                return rule, parameters
        return None


registered = RuleSet()  # filled when Django imports the `channels` modules


def channel(pattern: str, *, cache_seconds: float | None = None) -> Callable[[users.FunctionType], users.FunctionType]:
    """Make the function the authorization rule of a pattern. Write it in the `channels` module of any app.

        @channel("private-orders-{order_id:int}")
        def may_see_order(user, order_id):
            return user.is_authenticated and Order.objects.filter(pk=order_id, customer=user).exists()

    `pattern`: a channel name that begins with `private-` or `presence-`, with parameters `{name}`, `{name:slug}`,
    `{name:int}` or `{name:uuid}`. The function takes the user (maybe an anonymous one), the parameters by name, and the
    request if it has a parameter `request`; it may be an `async def`. It returns True or False; on a presence channel
    also a dict, the info of the signed-in user, or a `Member`; on both a token of `capability()`. Raising
    PermissionDenied, Http404 or DoesNotExist refuses the visitor.

    `cache_seconds`: for how long an admitted visitor is admitted again without a call of the function, 3,600 at most.
    Such a function takes no request and returns no token. `presence.disconnect_user()` empties the cache of every
    worker.

    Raises InvalidPattern, or InvalidRule for a function with other parameters, when the module is imported.
    Source: Pusher Channels, "Authorizing users".
    """
    _check_is_pattern(pattern)

    def register(function: users.FunctionType) -> users.FunctionType:
        registered.add(pattern, function, cache_seconds=cache_seconds)
        return function

    return register


def _check_is_cacheable(rule: Rule) -> None:
    seconds: Any = rule.cache_seconds
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds <= rule_cache.MOST_SECONDS:
        raise errors.InvalidRule(
            f"cache_seconds of {rule.name} is {seconds!r}; it is a number of seconds above 0 and at most "
            f"{rule_cache.MOST_SECONDS}. Leave it out to call the rule each time."
        )
    if rule.function.wants_request:
        raise errors.InvalidRule(
            f"{rule.name} has cache_seconds and the parameter 'request'. Its answer may depend on anything in the "
            "request, so it cannot be kept: drop one of the two."
        )


def _check_is_pattern(pattern: Any) -> None:
    if not isinstance(pattern, str):
        shown = getattr(pattern, "__name__", "may_join")
        raise errors.InvalidPattern(
            f"@channel takes the pattern of the channels, a str, not {type(pattern).__name__}: write "
            f'@channel("private-orders-{{order_id:int}}") above def {shown}(user, order_id).'
        )


# -- decisions ---------------------------------------------------------------------------------------------------------


class Answer(NamedTuple):
    """`channel_data`: the member of a presence channel. `token`: the capability that a rule returned."""

    channel_data: str | None = None
    token: str | None = None


def authorize(request: HttpRequest, channel: str, limits: registry.Limits, *, generation: int | None = None) -> Answer:
    """Ask the rule of a channel.

    `generation`: of the cache, before anything was read that decides. None: the answer is not kept.

    Raises AccessRefused, or RuleError if the rule itself is wrong.
    """
    if not channel.startswith(GUARDED_PREFIXES):
        raise errors.AccessRefused(
            "public_channel", f"{channel} is a public channel: clients subscribe to it without /pusher/auth."
        )
    found = registered.find(channel)
    if found is None:
        raise errors.AccessRefused(
            "no_rule",
            f'No authorization rule matches {channel}. Write one, @channel("{channel}"), in an app\'s channels.py.',
        )
    rule, parameters = found
    user = users.visitor(request)

    def ask() -> Answer:
        return _checked(rule.function(user, parameters, request), rule, user, channel, limits)

    visitor = None if rule.cache_seconds is None else rule_cache.visitor_key(user, request)
    if rule.cache_seconds is None or visitor is None:
        return ask()
    key = (rule.name, channel, visitor, limits)
    cache = rule_cache.cache
    answer: Answer | None = cache.find(key)
    if answer is None:
        answer = ask()
        cache.keep(key, answer, rule.cache_seconds, generation)
    return answer


def _checked(answer: Any, rule: Rule, user: Any, channel: str, limits: registry.Limits) -> Answer:
    """What the rule returned, as an Answer. Raises AccessRefused, InvalidAnswer."""
    if answer is None or answer is False:
        raise errors.AccessRefused("refused", f"{rule.name} returned {answer} for {channel}.")
    if isinstance(answer, tokens.Token):
        if rule.cache_seconds is not None:
            raise errors.InvalidAnswer(
                f"{rule.name} has cache_seconds and returned a token, which has a lifetime of its own: drop one of the "
                "two."
            )
        return _by_token(answer, channel, rule, limits)
    if names.is_presence(channel):
        return Answer(users.channel_data(_member(answer, user, rule), limits))
    if answer is not True:
        kind = type(answer).__name__
        raise errors.InvalidAnswer(
            f"{rule.name} returned an object of type {kind} for the private channel {channel}; return True or False"
            + (", for example with .exists()." if kind.endswith("QuerySet") else ", for example bool(…).")
        )
    return Answer()


def _by_token(token: tokens.Token, channel: str, rule: Rule, limits: registry.Limits) -> Answer:
    contents = token.capability
    needed = {capabilities.SUBSCRIBE, *([capabilities.PRESENCE] if names.is_presence(channel) else [])}
    if not contents.covers(channel) or not needed <= contents.rights:
        raise errors.InvalidAnswer(
            f"{rule.name} returned a token that does not admit to {channel}: it needs the channel and the rights "
            f"{', '.join(sorted(needed))}."
        )
    if not names.is_presence(channel):
        return Answer(token=token)
    # pusher-js reads the member's id from it; the server takes the member from the token.
    return Answer(users.channel_data(users.Member(contents.user_id or "", json.loads(contents.info)), limits), token)


def _member(answer: Any, user: Any, rule: Rule) -> users.Member:
    if isinstance(answer, users.Member):
        return answer
    if answer is not True and not isinstance(answer, Mapping):
        kind = type(answer).__name__
        raise errors.InvalidAnswer(
            f"{rule.name} returned an object of type {kind}; for a presence channel return True, False, a dict or "
            "Member(id, info)."
        )
    if not user.is_authenticated:
        raise errors.AccessRefused(
            "anonymous",
            f"{rule.name} admits a visitor who is not signed in, so the member has no id. Return False, or "
            "Member(id, info) with an id of your own.",
        )
    return users.member_of(user, answer)
