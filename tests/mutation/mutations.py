"""The mutants of a module: each changes one place of its syntax tree."""

from __future__ import annotations

import ast
import copy
import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

SWAPPED: dict[type[Any], type[Any]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
}


class Mutant(NamedTuple):
    line: int
    before: str
    after: str
    source: str  # of the whole module

    def __str__(self) -> str:
        return f"line {self.line}: `{self.before}` -> `{self.after}`"


def mutants(source: str) -> Iterator[Mutant]:
    tree = ast.parse(source)
    for index, node in enumerate(_places(tree)):
        for change in _changes(node):
            mutated = copy.deepcopy(tree)
            place = _places(mutated)[index]
            before = ast.unparse(place)
            changed = change(place)
            yield Mutant(node.lineno, _short(before), _short(ast.unparse(changed)), ast.unparse(mutated))


def sampled(source: str, number: int | None, seed: int) -> list[Mutant]:
    """So many mutants, chosen at random; all of them for None."""
    found = list(mutants(source))
    return found if number is None or number >= len(found) else random.Random(seed).sample(found, number)


def _short(code: str) -> str:
    return " ".join(code.split())[:100]


def _places(tree: ast.Module) -> list[Any]:
    """The nodes inside functions, without what only people read: annotations, log calls, counters' names, texts."""
    found: list[Any] = []

    def visit(node: ast.AST, *, inside: bool) -> None:
        if isinstance(node, ast.Expr) and (_is_text(node.value) or _is_log(node.value)):
            return
        if inside and isinstance(node, ast.expr | ast.stmt):
            found.append(node)
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list", "type_params"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
                    visit(child, inside=inside or (function and name == "body"))

    visit(tree, inside=False)
    return found


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _is_log(node: ast.expr) -> bool:
    """A call such as `_log.warning(...)`."""
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id in ("_log", "logger", "log", "_refusal_log")
    )


def _changes(node: Any) -> Iterator[Callable[[Any], ast.AST]]:
    """Each changes the node in its tree, and answers what stands there."""

    def set_operator(place: Any) -> ast.AST:
        place.op = SWAPPED[type(place.op)]()
        return place  # type: ignore[no-any-return]

    def set_comparison(place: Any) -> ast.AST:
        place.ops[0] = SWAPPED[type(place.ops[0])]()
        return place  # type: ignore[no-any-return]

    def drop_not(place: Any) -> ast.AST:
        place.op = ast.UAdd()
        place.operand = ast.Call(ast.Name("bool", ast.Load()), [place.operand], [])
        return place  # type: ignore[no-any-return]

    def next_value(place: Any) -> ast.AST:
        place.value = not place.value if isinstance(place.value, bool) else place.value + 1
        return place  # type: ignore[no-any-return]

    def drop_call(place: Any) -> ast.AST:
        place.value = ast.Constant(None)
        return place  # type: ignore[no-any-return]

    def negate(place: Any) -> ast.AST:
        place.test = ast.UnaryOp(ast.Not(), place.test)
        return place  # type: ignore[no-any-return]

    match node:
        case ast.BoolOp() | ast.BinOp(op=ast.Add() | ast.Sub()) | ast.AugAssign(op=ast.Add() | ast.Sub()):
            yield set_operator
        case ast.Compare(ops=[operator, *_]) if type(operator) in SWAPPED:
            yield set_comparison
        case ast.UnaryOp(op=ast.Not()):
            yield drop_not
        case ast.Constant(value=bool() | int() | float()):
            yield next_value
        case ast.Expr(value=ast.Call()):
            yield drop_call
        # `return False` as `return None` is the same for a condition; it is changed to `return True`.
        case ast.Return(value=ast.expr() as value) if not (
            isinstance(value, ast.Constant) and value.value in (None, False)
        ):
            yield drop_call
        case (
            ast.If(test=ast.Name() | ast.Attribute() | ast.Call())
            | ast.IfExp(test=ast.Name() | ast.Attribute() | ast.Call())
        ):
            yield negate
