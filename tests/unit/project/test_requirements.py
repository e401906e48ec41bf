"""The lists of requirements agree: pins, ranges of the package, and the lists for uv."""

from __future__ import annotations

import re
import tomllib

import pytest
from packaging.requirements import Requirement

from tests.harness import deployments

ROOT = deployments.REPOSITORY
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGE = PROJECT["project"]["dependencies"]
EXTRAS = PROJECT["project"]["optional-dependencies"]


def pins(name: str) -> dict[str, Requirement]:
    """The requirements of a file by name, those of an included file too."""
    found: dict[str, Requirement] = {}
    for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
        if line.startswith("-r "):
            found |= pins(line.removeprefix("-r ").strip())
        elif line.partition("#")[0].strip():
            found |= by_name([line.partition("#")[0].strip()])
    return found


def by_name(lines: list[str]) -> dict[str, Requirement]:
    return {requirement.name.lower(): requirement for requirement in map(Requirement, lines)}


def version(requirement: Requirement) -> str:
    (specifier,) = requirement.specifier
    assert specifier.operator == "==", requirement
    return specifier.version


def test_every_requirement_of_the_files_is_a_pin() -> None:
    for requirement in pins("requirements-dev.txt").values():
        assert version(requirement)
        assert requirement.marker is None, "the bootstrap script reads no markers"


@pytest.mark.parametrize("line", [*PACKAGE, *(line for extra in EXTRAS.values() for line in extra)])
def test_pin_is_in_the_range_of_the_package_and_of_its_extras(line: str) -> None:
    wanted = Requirement(line)
    pinned = pins("requirements.txt")[wanted.name.lower()]
    assert wanted.specifier.contains(version(pinned)), f"{pinned} is not in the range {wanted.specifier}"
    assert wanted.extras <= pinned.extras


def test_package_depends_on_ranges() -> None:
    for requirement in map(Requirement, PACKAGE):
        assert "==" not in {specifier.operator for specifier in requirement.specifier}, requirement
    upper = [specifier for specifier in by_name(PACKAGE)["uvicorn"].specifier if specifier.operator == "<"]
    assert upper, "uvicorn's protocol objects may change: the range needs an upper bound"


def test_page_of_releases_has_the_least_version_of_each_requirement() -> None:
    text = (ROOT / "docs/reference/releases.md").read_text(encoding="utf-8")
    for wanted in map(Requirement, [*PACKAGE, *(line for extra in EXTRAS.values() for line in extra)]):
        (least,) = [specifier.version for specifier in wanted.specifier if specifier.operator == ">="]
        assert re.search(rf"\b{wanted.name} {re.escape(least)}[ ,]", text), wanted


def test_uv_installs_what_make_installs() -> None:
    group = by_name(PROJECT["dependency-groups"]["dev"])
    assert {name: str(each) for name, each in group.items()} == {
        name: str(each) for name, each in pins("requirements-dev.txt").items()
    }
    constraints = by_name(PROJECT["tool"]["uv"]["constraint-dependencies"])
    assert {name: version(each) for name, each in constraints.items()} == {
        name: version(each) for name, each in pins("requirements.txt").items()
    }


def test_image_and_make_install_the_same_pins() -> None:
    assert "requirements.txt" in (ROOT / "deploy/Dockerfile").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for name in ("requirements.txt", "requirements-dev.txt"):
        assert f"deploy/bootstrap.py {name}" in makefile
