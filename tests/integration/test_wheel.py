"""The package as a user installs it: what the wheel holds, and what it does in a fresh project."""

from __future__ import annotations

import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.harness import deployments, packages

SOURCE = deployments.REPOSITORY / "apps" / "fanfare"
DESCRIPTION = SOURCE / "README.md"


def test_wheel_holds_the_package_and_nothing_else(built: packages.Built) -> None:
    with zipfile.ZipFile(built.wheel) as wheel:
        names = set(wheel.namelist())
    package = {name for name in names if not name.split("/")[0].endswith(".dist-info")}
    assert {name.split("/")[0] for name in package} == {"fanfare"}
    source = {
        path.relative_to(SOURCE.parent).as_posix()
        for path in SOURCE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path != DESCRIPTION
    }
    assert package == source
    assert {"fanfare/py.typed", "fanfare/migrations/0001_initial.py", "fanfare/static/fanfare/client.js"} <= package


def test_templates_and_static_files_are_in_folders_named_after_the_package(built: packages.Built) -> None:
    with zipfile.ZipFile(built.wheel) as wheel:
        names = wheel.namelist()
    for kind in ("templates", "static"):
        found = {name.removeprefix(f"fanfare/{kind}/") for name in names if name.startswith(f"fanfare/{kind}/")}
        assert found, kind
        assert all(name.startswith(("fanfare/", "admin/fanfare/")) for name in found), kind


def test_source_distribution_holds_the_package_its_description_and_its_licence(built: packages.Built) -> None:
    with tarfile.open(built.sdist) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    beside = {name for name in names if not name.startswith("apps/fanfare/")}
    assert beside == {".gitignore", "CHANGELOG.md", "LICENSE", "PKG-INFO", "pyproject.toml"}


def test_metadata_has_the_description_ranges_and_extras(built: packages.Built) -> None:
    with zipfile.ZipFile(built.wheel) as wheel:
        (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
        metadata, _, description = wheel.read(name).decode().partition("\n\n")
    assert description.strip() == DESCRIPTION.read_text(encoding="utf-8").strip()
    requirements = [line.partition(": ")[2] for line in metadata.splitlines() if line.startswith("Requires-Dist: ")]
    assert "django>=5.2" in requirements
    assert not [line for line in requirements if "==" in line.partition(";")[0]], "pins are for requirements.txt"
    assert "uvicorn[standard]" in " ".join(requirements)


@pytest.fixture
def project(site: packages.Site, tmp_path: Path) -> packages.Project:
    return packages.Project(site, tmp_path / "project")


def test_sites_have_the_oldest_and_the_newest_django(lts_site: packages.Site, newest_site: packages.Site) -> None:
    assert lts_site.version("django").startswith("5.2.")
    oldest, newest = ([int(part) for part in each.version("django").split(".")] for each in (lts_site, newest_site))
    assert newest >= oldest


def test_fresh_project_checks_migrates_and_publishes(project: packages.Project) -> None:
    assert "no issues" in project.manage("check")
    project.manage("migrate", "--verbosity", "0")
    assert "No changes detected" in project.manage("makemigrations", "--check", "--dry-run")
    assert "FANFARE_APP_KEY=" in project.manage("createapplication", "Shop")
    code = "import fanfare; fanfare.publish('orders', 'created', {'id': 7})"
    project.manage("shell", "--no-imports", "-c", code)
    assert (project.root / "var" / "engine").is_dir(), "the data folder is beside manage.py"
    assert stat.S_IMODE((project.root / "var").stat().st_mode) == 0o700


def test_every_module_can_be_imported_without_the_extras(project: packages.Project) -> None:
    """Except the plugin of pytest and the engines for several machines, which name what they need."""
    code = (
        "import importlib, pkgutil, sys, fanfare\n"
        "for module in pkgutil.walk_packages(fanfare.__path__, 'fanfare.'):\n"
        "    try:\n"
        "        importlib.import_module(module.name)\n"
        "    except ModuleNotFoundError as error:\n"
        "        print(module.name, error.name)\n"
    )
    found = dict(line.split() for line in project.manage("shell", "--no-imports", "-c", code).splitlines())
    for engine, needed in (("postgres", {"psycopg"}), ("redis", {"redis", "hiredis"})):
        missing = {missing for name, missing in found.items() if name.startswith(f"fanfare.engine.{engine}.")}
        assert missing
        assert missing <= needed
    assert set(found.values()) - {"psycopg", "redis", "hiredis"} == {"pytest"}
