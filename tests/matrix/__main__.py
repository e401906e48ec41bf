"""Run unit tests for each interpreter and version of Django, each in an environment of its own, and say which ran.

Tests that start PostgreSQL are left out, and the one that compares the environment with the pinned versions.

python -m tests.matrix
python -m tests.matrix --python 3.13 --django 5.2 -- tests/unit/protocol
python -m tests.matrix --keep var/matrix -- tests/unit/hub    # environments that the next run uses again, and outputs
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.harness import deployments

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
DJANGOS = {"5.2": "django~=5.2.0", "newest": "django"}
TESTS = ("tests/unit/protocol", "tests/unit/applications", "tests/unit/integration", "tests/unit/hub", "tests/unit/sse")
CHOSEN = "not postgres and not environment_of_these_tests"
UV = Path(sys.executable).parent / "uv"


def interpreters(version: str) -> Iterator[str]:
    """The paths of this version: pyenv's and those on the PATH."""
    yield from map(str, sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"), reverse=True))
    if found := shutil.which(f"python{version}"):
        yield found


def works(python: str) -> bool:
    return subprocess.run([python, "-c", "import ssl, sqlite3"], capture_output=True, check=False).returncode == 0


def install(python: str, django: str, wanted: Path, environment: Path) -> str | None:
    """Make the environment, unless it was made for the same requirements. Returns a fault."""
    inside, mark = environment / "bin" / "python", environment / "requirements.txt"
    if mark.exists() and mark.read_text() == wanted.read_text():
        return None
    for command in (
        [str(UV), "venv", "--quiet", "--allow-existing", "--python", python, str(environment)],
        [str(UV), "pip", "install", "--no-config", "--quiet", "--python", str(inside), "-r", str(wanted), django],
        [str(UV), "pip", "install", "--no-config", "--quiet", "--python", str(inside), "--no-deps", "-e", "."],
    ):
        done = subprocess.run(command, cwd=deployments.REPOSITORY, capture_output=True, text=True, check=False)
        if done.returncode:
            return f"not installed: {done.stderr.strip().splitlines()[-1]}"
    mark.write_text(wanted.read_text())
    return None


def run(python: str, django: str, folder: Path, tests: list[str]) -> str:
    """One cell, with its environment in `folder`: the last line of its output."""
    environment = folder / "venv"
    inside = environment / "bin" / "python"
    lines = (deployments.REPOSITORY / "requirements-dev.txt").read_text(encoding="utf-8").splitlines()
    lines += (deployments.REPOSITORY / "requirements.txt").read_text(encoding="utf-8").splitlines()
    folder.mkdir(parents=True, exist_ok=True)
    wanted = folder / "requirements.txt"
    wanted.write_text("\n".join(one for one in lines if not one.startswith(("django==", "-r "))))
    if fault := install(python, django, wanted, environment):
        return fault
    output = folder / "output"
    with output.open("w", encoding="utf-8") as file:
        subprocess.run(
            [str(inside), "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", CHOSEN, *tests],
            cwd=deployments.REPOSITORY,
            stdout=file,
            stderr=subprocess.STDOUT,
            check=False,
        )
    lines = output.read_text(encoding="utf-8", errors="replace").splitlines()
    version = subprocess.run(
        [str(inside), "-c", "import django; print(django.__version__)"], capture_output=True, text=True, check=True
    )
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return "\n    ".join([f"Django {version.stdout.strip()}: {lines[-1]}", *failed[:10]])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.matrix")
    parser.add_argument("--python", action="append", choices=PYTHONS)
    parser.add_argument("--django", action="append", choices=sorted(DJANGOS))
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the environments and outputs there")
    parser.add_argument("tests", nargs="*", default=list(TESTS))
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        kept = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fanfare-matrix-")))
        failed = cells(options, kept.resolve())
    return 1 if failed else 0


def cells(options: argparse.Namespace, kept: Path) -> bool:
    """Run and print each cell. Returns whether one failed."""
    failed = False
    for version in options.python or PYTHONS:
        python = next(filter(works, interpreters(version)), None)
        if python is None:
            print(f"Python {version}: not on this machine")
            continue
        for name in options.django or DJANGOS:
            result = run(python, DJANGOS[name], kept / f"{version}-{name}", options.tests)
            print(f"Python {version}, {name}: {result}", flush=True)
            failed = failed or "failed" in result or "error" in result or "not installed" in result
    return failed


if __name__ == "__main__":
    sys.exit(main())
