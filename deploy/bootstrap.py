"""Create `.venv` and install the pinned requirements and this project into it: the first step of every `make` target.

    python3 deploy/bootstrap.py requirements.txt

It uses the standard library only, and its syntax is old enough that an old Python can say that it is too old. Each run
compares the versions that are installed with the pins, so a run that finds nothing to do takes a fifth of a second, and
an environment that another tool has changed is put right.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

OLDEST = (3, 11)
ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".venv"
PYTHON = FOLDER / "bin" / "python"
PROJECT = "django-fanfare"  # its name in pyproject.toml

# Runs in the environment's own Python: prints the version of each distribution, and where the editable one comes from.
LOOK = """
import json, sys
from importlib import metadata
found = {}
for distribution in metadata.distributions():
    found.setdefault(distribution.name.lower().replace("_", "-").replace(".", "-"), distribution)
project = found.get(sys.argv[1])
source = json.loads(project.read_text("direct_url.json") or "{}") if project else {}
editable = source.get("dir_info", {}).get("editable") and source["url"]
print(json.dumps({"versions": {name: each.version for name, each in found.items()}, "editable": editable}))
"""


def main(names: list[str]) -> None:
    if sys.version_info < OLDEST:
        use_newer_python()
    try:
        prepare([ROOT / name for name in names or ["requirements.txt"]])
    except OSError as error:
        sys.exit(f"{error.filename or FOLDER}: {error.strerror}.")


def use_newer_python() -> None:
    """Continue with a newer Python of this machine, if it has one."""
    for minor in range(14, OLDEST[1] - 1, -1):
        found = shutil.which(f"python3.{minor}")
        if found and _succeeds([found, "-c", "import venv, ensurepip"]):
            os.execv(found, [found, __file__, *sys.argv[1:]])
    sys.exit(
        f"Fanfare needs Python {OLDEST[0]}.{OLDEST[1]} or later; {sys.executable} is {sys.version.split()[0]} "
        "(give another one with `make PYTHON=/path/to/python3`)."
    )


def prepare(requirements: list[Path]) -> None:
    """Create the environment if there is none that works, and install what is missing or has another version."""
    if not runs(PYTHON):
        create()
    installed = look()
    wrong = [pin for path in requirements for pin in pins(path) if not _is_installed(pin, installed["versions"])]
    if wrong:
        print(f"Installing {', '.join(path.name for path in requirements)} into {FOLDER.name}", flush=True)
        pip(*(part for path in requirements for part in ("--requirement", str(path))))
    if installed["editable"] != ROOT.as_uri():
        print(f"Installing this project into {FOLDER.name}, editable", flush=True)
        pip("--no-deps", "--editable", str(ROOT))


def create() -> None:
    """A fresh environment. One that was copied, or whose Python is gone, is replaced."""
    print(f"Creating {FOLDER.name} with Python {sys.version.split()[0]}", flush=True)
    made = subprocess.run(
        [sys.executable, "-m", "venv", "--clear", str(FOLDER)], capture_output=True, text=True, check=False
    )
    if made.returncode == 0:
        return
    shutil.rmtree(FOLDER, ignore_errors=True)  # a half-made one would look like a whole one next time
    if not os.access(ROOT, os.W_OK):
        sys.exit(f"{ROOT} cannot be written by this user, so {FOLDER.name} cannot be made there.")
    if "ensurepip" in made.stdout + made.stderr:
        sys.exit(
            "This Python has no ensurepip: install its venv package (Debian and Ubuntu: apt install python3-venv)."
        )
    sys.exit(f"{FOLDER.name} could not be made: {(made.stderr or made.stdout).strip().splitlines()[-1]}")


def runs(python: Path) -> bool:
    """Whether this is a working interpreter of this environment, new enough."""
    script = f"import sys; sys.exit(not (sys.version_info >= {OLDEST} and sys.prefix == {str(FOLDER)!r}))"
    return python.exists() and _succeeds([str(python), "-I", "-c", script])


def look() -> dict:
    """`versions` by distribution, and `editable`: the URL of the folder from which this project is installed."""
    found = subprocess.run([str(PYTHON), "-I", "-c", LOOK, PROJECT], capture_output=True, text=True, check=True)
    return json.loads(found.stdout)


def pins(path: Path) -> list[tuple[str, str]]:
    """Name and version of each line `name[extra]==version`, those of an included file too."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("-r "):
            found += pins(path.parent / line[3:].strip())
        else:
            pin = re.match(r"([\w.-]+)(?:\[[\w,-]+\])?==([^\s;#]+)", line)
            if pin:
                found.append((re.sub(r"[_.]", "-", pin[1].lower()), pin[2]))
    return found


def pip(*arguments: str) -> None:
    """`pip install`. An environment of uv has no pip until it is needed here."""
    if not _succeeds([str(PYTHON), "-I", "-c", "import pip"]):
        subprocess.run([str(PYTHON), "-I", "-m", "ensurepip"], capture_output=True, check=True)
    command = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", "--quiet", "install", *arguments]
    if subprocess.run(command, check=False).returncode != 0:
        sys.exit("The packages could not be installed; pip says why above.")


def _is_installed(pin: tuple[str, str], versions: dict) -> bool:
    return versions.get(pin[0]) == pin[1]


def _succeeds(command: list[str]) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


if __name__ == "__main__":
    main(sys.argv[1:])
