"""Modules do not import each other in circles. The contracts of `lint-imports` order the packages."""

from __future__ import annotations

import graphlib

import grimp
import pytest

PACKAGES = ("demo", "fanfare", "myproject")


def circle(edges: dict[str, set[str]]) -> list[str]:
    """The modules of one circle, or an empty list. `edges`: the imports of each module."""
    try:
        graphlib.TopologicalSorter(edges).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Imports inside functions and for type checking count, too."""
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    edges = {module: set(graph.find_modules_directly_imported_by(module)) for module in graph.modules}
    assert len(edges) > 200
    assert circle(edges) == []


@pytest.mark.parametrize(
    ("edges", "found"),
    [({"a": {"b"}, "b": {"c"}, "c": set()}, set()), ({"a": {"b"}, "b": {"c"}, "c": {"b"}}, {"b", "c"})],
)
def test_circles_are_found(edges: dict[str, set[str]], found: set[str]) -> None:
    assert set(circle(edges)) == found
