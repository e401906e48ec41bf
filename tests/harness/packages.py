"""The built package, and fresh projects that install it: what a user has who types `pip install django-fanfare`."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.harness import deployments

UV = Path(sys.executable).parent / "uv"
TIME_LIMIT_S = 300.0  # of one command; the first installation on a machine downloads some 30 MB

# Where the newest Django needs a newer Python than the one that runs the tests.
PYTHONS = ("python3.14", "python3.13", "python3.12", sys.executable)


class Built:
    """The two distributions, built once."""

    def __init__(self, folder: Path) -> None:
        run([sys.executable, "-m", "build", "--outdir", str(folder), str(deployments.REPOSITORY)])
        (self.wheel,) = folder.glob("*.whl")
        (self.sdist,) = folder.glob("*.tar.gz")


class Site:
    """A virtual environment with the wheel and its dependencies, and nothing of this repository."""

    def __init__(self, folder: Path, requirements: Sequence[str], *, python: str = sys.executable) -> None:
        self.folder = folder
        run([str(UV), "venv", "--quiet", "--python", python, str(folder)])
        pins = folder / "pins.txt"
        pins.write_text(_pins(without=[_name(requirement) for requirement in requirements]))
        # Without the constraints of this repository's pyproject.toml, which uv reads in its folder.
        install = [str(UV), "pip", "install", "--no-config", "--quiet", "--python", str(self.python)]
        run([*install, "--constraint", str(pins), *requirements])

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def version(self, distribution: str) -> str:
        return self("-c", f"from importlib.metadata import version; print(version({distribution!r}))").strip()

    def __call__(self, *arguments: str, cwd: Path | None = None, environment: Mapping[str, str] | None = None) -> str:
        """Run its Python in an empty folder or in `cwd`; the standard output. Raises AssertionError if it fails."""
        return run([str(self.python), *arguments], cwd=cwd or self.folder, environment=environment)

    def program(self, name: str) -> str:
        """The path of an installed command, such as `uvicorn`."""
        return str(self.folder / "bin" / name)


class Project:
    """What `django-admin startproject` makes in an empty folder, with `fanfare` added to INSTALLED_APPS."""

    def __init__(self, site: Site, root: Path, name: str = "shop") -> None:
        self.site = site
        self.root = root
        self.name = name
        root.mkdir(parents=True, exist_ok=True)
        site("-m", "django", "startproject", name, str(root), cwd=root)
        self.append("settings.py", '\nINSTALLED_APPS += ["fanfare"]\n')

    def file(self, name: str) -> Path:
        """A file of the project's package: `settings.py`, `urls.py`, `asgi.py`."""
        return self.root / self.name / name

    def append(self, name: str, text: str) -> None:
        with self.file(name).open("a", encoding="utf-8") as file:
            file.write(text)

    def environment(self, **more: str) -> dict[str, str]:
        return clean_environment({"DJANGO_SETTINGS_MODULE": f"{self.name}.settings", **more})

    def manage(self, *arguments: str, **environment: str) -> str:
        return self.site("manage.py", *arguments, cwd=self.root, environment=self.environment(**environment))


def newest_python() -> str:
    """The newest Python of this machine that is not older than the one that runs the tests."""
    for candidate in PYTHONS:
        path = shutil.which(candidate)
        if path and subprocess.run([path, "-c", "import venv"], capture_output=True, check=False).returncode == 0:
            return path
    return sys.executable


def clean_environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without anything of Fanfare, Django, Python's paths or an active environment."""
    foreign = (*deployments.OWN_PREFIXES, "PYTHON", "VIRTUAL_ENV")
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(foreign) and name not in deployments.OWN_NAMES
    }
    return {**kept, "PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "error", **(more or {})}


def run(command: Sequence[str], *, cwd: Path | None = None, environment: Mapping[str, str] | None = None) -> str:
    ended = subprocess.run(
        command,
        cwd=cwd,
        env=clean_environment({"PYTHONWARNINGS": "default"}) if environment is None else dict(environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT_S,
        check=False,
    )
    assert ended.returncode == 0, f"{' '.join(command)} ended with {ended.returncode}:\n{ended.stdout}{ended.stderr}"
    return ended.stdout


def _pins(without: Sequence[str]) -> str:
    """The pins of this repository as constraints, so that a new release of a dependency fails no test."""
    lines = (deployments.REPOSITORY / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pins = [re.sub(r"\[.*?\]", "", line.partition(";")[0].strip()) for line in lines if "==" in line]
    return "\n".join(pin for pin in pins if _name(pin) not in without) + "\n"


def _name(requirement: str) -> str:
    return re.split(r"[\[=<>~ @]", Path(requirement).name, maxsplit=1)[0].lower()
