"""A virtual environment with what the project needs: the first step of every `make` target, on a machine with Python
only.

Nothing but the standard library, and a syntax that an old Python reads far enough to be told that it is too old. What
is installed is remembered by the contents of the requirements, so a second run does nothing.

    python3 -m myproject.bootstrap requirements.txt
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

OLDEST = (3, 11)
ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".venv"
PYTHON = FOLDER / "bin" / "python"


def main(names: list[str]) -> None:
    if sys.version_info < OLDEST:
        use_newer_python()
    try:
        prepare([ROOT / name for name in names or ["requirements.txt"]])
    except OSError as error:
        sys.exit(f"{error.filename or FOLDER}: {error.strerror}.")


def use_newer_python() -> None:
    """Go on with a Python that is new enough, if the machine has one beside the one that was called."""
    for minor in range(14, OLDEST[1] - 1, -1):
        found = shutil.which(f"python3.{minor}")
        if (
            found
            and subprocess.run([found, "-c", "import venv, ensurepip"], capture_output=True, check=False).returncode
            == 0
        ):
            os.execv(found, [found, "-m", "myproject.bootstrap", *sys.argv[1:]])
    sys.exit(
        f"Fanfare needs Python {OLDEST[0]}.{OLDEST[1]} or later; {sys.executable} is {sys.version.split()[0]} "
        "(give another one with `make PYTHON=/path/to/python3`)."
    )


def prepare(requirements: list[Path]) -> None:
    """Create the environment if it is not there, and install what changed."""
    stamp = FOLDER / ("installed-" + "+".join(path.stem for path in requirements))
    wanted = fingerprint(requirements)
    if PYTHON.exists() and stamp.exists() and stamp.read_text(encoding="ascii") == wanted:
        return
    if not runs(PYTHON):
        create()
    print(f"Installing {', '.join(path.name for path in requirements)} into {FOLDER.name}", flush=True)
    arguments = [part for path in requirements for part in ("--requirement", str(path))]
    pip = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", "--quiet", "install", *arguments]
    if subprocess.run(pip, check=False).returncode != 0:
        sys.exit("The packages could not be installed; pip says why above.")
    stamp.write_text(wanted, encoding="ascii")


def create() -> None:
    """A fresh environment; one that was copied or whose Python is gone is replaced."""
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
    """Whether this is a working interpreter of this very environment, new enough."""
    script = f"import sys; sys.exit(not (sys.version_info >= {OLDEST} and sys.prefix == {str(FOLDER)!r}))"
    return python.exists() and subprocess.run([python, "-c", script], capture_output=True, check=False).returncode == 0


def fingerprint(requirements: list[Path]) -> str:
    """Changes with what is asked for, in this file or in one that it includes, and with the folder's place."""
    digest = hashlib.sha256(str(FOLDER).encode())
    for path in requirements:
        for line in path.read_text(encoding="utf-8").splitlines():
            digest.update(line.encode())
            if line.startswith("-r "):
                digest.update((path.parent / line[3:].strip()).read_bytes())
    return digest.hexdigest()


if __name__ == "__main__":
    main(sys.argv[1:])
