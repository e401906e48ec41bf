"""`uv sync` and `make` agree: the environment that one of them made is complete for the other."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import deployments, packages, parts


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A copy of the files that git tracks, or would track."""
    root = tmp_path / "clone"
    command = [parts.executable("git"), "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others"]
    listed = packages.run([*command, "--exclude-standard"], cwd=deployments.REPOSITORY)
    for name in filter(None, listed.split("\0")):
        source = deployments.REPOSITORY / name
        if source.is_file():  # a file that is deleted and not yet committed is still listed
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, root / name)
    return root


def test_environment_of_uv_is_complete_for_make_and_for_the_documented_command(clone: Path) -> None:
    packages.run([str(packages.UV), "sync", "--quiet", "--python", sys.executable], cwd=clone)
    found = packages.run([sys.executable, "deploy/bootstrap.py", "requirements-dev.txt"], cwd=clone)
    assert found == "", "make would install something"
    help_text = packages.run([str(packages.UV), "run", "--quiet", "uvicorn", "--version"], cwd=clone)
    assert "Running uvicorn" in help_text
    code = "import myproject.asgi, fanfare; print(fanfare.__file__)"
    environment = packages.clean_environment({"FANFARE_DATA_DIR": str(clone / "var"), "PYTHONWARNINGS": "default"})
    imported = packages.run(
        [str(packages.UV), "run", "--quiet", "python", "-c", code], cwd=clone, environment=environment
    )
    assert imported.strip() == str(clone / "apps" / "fanfare" / "__init__.py")


def test_make_repairs_what_another_tool_removed(clone: Path) -> None:
    packages.run([str(packages.UV), "sync", "--quiet", "--python", sys.executable], cwd=clone)
    python = clone / ".venv" / "bin" / "python"
    packages.run(
        [str(packages.UV), "pip", "uninstall", "--quiet", "--python", str(python), "django-fanfare"], cwd=clone
    )
    found = packages.run([sys.executable, "deploy/bootstrap.py", "requirements-dev.txt"], cwd=clone)
    assert found == "Installing this project into .venv, editable\n"
    imported = subprocess.run(
        [python, "-c", "import fanfare; print(fanfare.__file__)"], cwd=clone, capture_output=True, text=True, check=True
    )
    assert imported.stdout.strip() == str(clone / "apps" / "fanfare" / "__init__.py")
