from __future__ import annotations

from typing import Any

import pytest

from fanfare import channel, errors
from fanfare.integration import rules


def ruling(registered: rules.RuleSet, name: str) -> str | None:
    """Which function decides about a channel."""
    found = registered.find(name)
    return found and found[0].name.rpartition(".")[2]


def test_most_specific_pattern_decides_whatever_the_order(registered: rules.RuleSet) -> None:
    @channel("private-{anything:slug}")
    def anything(user: Any, anything: str) -> bool:
        return True

    @channel("private-orders-{name}")
    def by_name(user: Any, name: str) -> bool:
        return True

    @channel("private-orders-{order_id:int}")
    def by_number(user: Any, order_id: int) -> bool:
        return True

    @channel("private-orders-all")
    def everything(user: Any) -> bool:
        return True

    names = ["private-x", "private-orders-x", "private-orders-7", "private-orders-all", "presence-x"]
    assert [ruling(registered, name) for name in names] == ["anything", "by_name", "by_number", "everything", None]


def test_first_of_two_equally_specific_patterns_decides(registered: rules.RuleSet) -> None:
    @channel("private-{a}-x")
    def first(user: Any, a: str) -> bool:
        return True

    @channel("private-y-{b}")
    def second(user: Any, b: str) -> bool:
        return True

    assert ruling(registered, "private-y-x") == "first"


def test_second_rule_for_a_pattern_is_refused(registered: rules.RuleSet) -> None:
    @channel("private-orders-{order_id:int}")
    def one(user: Any, order_id: int) -> bool:
        return True

    with pytest.raises(errors.InvalidRule, match="one rule decides about a channel"):

        @channel("private-orders-{number:int}")
        def other(user: Any, number: int) -> bool:
            return True


def test_reloaded_module_replaces_its_rules(registered: rules.RuleSet) -> None:
    def load() -> Any:
        @channel("private-a")
        def rule(user: Any) -> bool:
            return True

        return rule

    load()
    newer = load()
    found = registered.find("private-a")
    assert found is not None
    assert found[0].function.original is newer


def test_decorator_returns_the_function_unchanged(registered: rules.RuleSet) -> None:
    @channel("private-a")
    def rule(user: Any) -> bool:
        return user == "ann"

    assert rule("ann") is True


def no_user() -> bool:
    return True


def no_parameter(user: Any) -> bool:
    return True


def request_first(request: Any, order_id: int) -> bool:
    return True


def one_too_many(user: Any, order_id: int, colour: str) -> bool:
    return True


def parameter_first(order_id: int) -> bool:
    return True


@pytest.mark.parametrize("function", [no_user, no_parameter, request_first, one_too_many, parameter_first])
def test_function_with_other_parameters_is_refused_at_import(registered: rules.RuleSet, function: Any) -> None:
    with pytest.raises(errors.InvalidRule, match=function.__name__):
        channel("private-orders-{order_id:int}")(function)


def test_decorator_without_parentheses_is_refused_with_the_line_to_write() -> None:
    def may_join(user: Any) -> bool:
        return True

    for wrong in (may_join, None, ["private-a", "private-b"]):
        with pytest.raises(errors.InvalidPattern, match=r'write @channel\("private-.*"\) above def may_join'):
            channel(wrong)  # type: ignore[arg-type]


def test_missing_parameter_is_named_with_the_line_to_write(registered: rules.RuleSet) -> None:
    with pytest.raises(errors.InvalidRule, match=r"write def no_parameter\(user, order_id\)"):
        channel("private-orders-{order_id:int}")(no_parameter)


def test_function_with_keyword_parameters_is_accepted(registered: rules.RuleSet) -> None:
    @channel("private-orders-{order_id:int}")
    def rule(user: Any, **parameters: Any) -> bool:
        return parameters == {"order_id": 1}

    found = registered.find("private-orders-1")
    assert found is not None
    assert found[0].function("ann", found[1], None) is True  # type: ignore[arg-type]


def test_channels_modules_of_apps_are_imported_at_start() -> None:
    assert ruling(rules.registered, "presence-demo") == "may_join"
