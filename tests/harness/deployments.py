"""A deployment: one data folder with its database, log and applications, and the servers that share it."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]

# Variables of the developer's own Fanfare, which must not reach the servers under test.
OWN_PREFIXES = ("FANFARE_", "UVICORN_", "GUNICORN_", "DJANGO_")
OWN_NAMES = frozenset({"DATABASE_URL", "WEB_CONCURRENCY", "FORWARDED_ALLOW_IPS", "SECRET_KEY", "PORT"})

ADMIN_NAME = "admin"
ADMIN_PASSWORD = "only-for-tests-7f3a"


@dataclass(frozen=True)
class Application:
    """An application's credentials, as `createapplication` prints them."""

    id: str
    key: str
    secret: str = field(repr=False)


class Deployment:
    """A data folder with a migrated database, and the management commands that run on it."""

    def __init__(self, folder: Path, environment: Mapping[str, str], application: Application) -> None:
        self.folder = folder
        self.application = application  # client events are enabled
        self._environment = dict(environment)

    def environment(self, **more: str) -> dict[str, str]:
        """The environment variables of a process of this deployment."""
        return environment_of(self.folder, {**self._environment, **more})

    def use(self, **environment: str) -> None:
        """Change settings of the processes that start from now on."""
        self._environment |= environment

    def manage(self, *arguments: str, **more: str) -> str:
        """Run `manage.py` and return its standard output. Raises CommandFailed."""
        return run_manage(self.environment(**more), *arguments)

    def shell(self, code: str) -> str:
        """Run Python code in `manage.py shell`, with the Application model imported."""
        prelude = "from fanfare.applications.models import Application\n"
        return self.manage("shell", "--no-imports", "-c", prelude + code)

    def log_files(self) -> list[Path]:
        """The local engine's log and its WAL and shared-memory files."""
        found = sorted((self.folder / "engine").glob("log.sqlite3*"))
        assert found, f"no log in {self.folder / 'engine'}"
        return found

    def create_application(self, name: str, *flags: str) -> Application:
        return parse_credentials(self.manage("createapplication", name, *flags))


def template(folder: Path) -> Deployment:
    """A deployment to copy from: migrating takes seconds, copying does not."""
    folder.mkdir(mode=0o700)
    environment = environment_of(folder, {})
    run_manage(environment, "migrate", "--verbosity", "0")
    run_manage({**environment, "DJANGO_SUPERUSER_PASSWORD": ADMIN_PASSWORD}, *CREATE_ADMIN)
    printed = run_manage(environment, "createapplication", "Tests", "--client-events", *DEMO_RULE)
    return Deployment(folder, {}, parse_credentials(printed))


DEMO_RULE = ("--history", "presence-demo=50,86400", "--rewind", "presence-demo=50")  # as in `manage.py setup`

CREATE_ADMIN = ("createsuperuser", "--noinput", "--username", ADMIN_NAME, "--email", "admin@example.com")


def copy(original: Deployment, folder: Path, environment: Mapping[str, str]) -> Deployment:
    """A copy of `original`, with the same application. `environment`: FANFARE_… settings of all its processes."""
    shutil.copytree(original.folder, folder)
    return Deployment(folder, environment, original.application)


def parse_credentials(printed: str) -> Application:
    """Parse the output of `createapplication`, which must be its three shell assignments and nothing else."""
    values: dict[str, str] = {}
    for line in printed.splitlines():
        (assignment,) = shlex.split(line.removeprefix("export "))
        name, _, value = assignment.partition("=")
        values[name] = value
    assert set(values) == {"FANFARE_APP_ID", "FANFARE_APP_KEY", "FANFARE_APP_SECRET"}, sorted(values)
    return Application(values["FANFARE_APP_ID"], values["FANFARE_APP_KEY"], values["FANFARE_APP_SECRET"])


def environment_of(folder: Path, more: Mapping[str, str]) -> dict[str, str]:
    """The environment variables of a process with this data folder."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(OWN_PREFIXES) and name not in OWN_NAMES
    }
    own = {"FANFARE_DATA_DIR": str(folder), "FANFARE_ENV_FILE": os.devnull, "PYTHONUNBUFFERED": "1"}
    return {**inherited, **own, **more}


def run_manage(environment: Mapping[str, str], *arguments: str, root: Path = REPOSITORY) -> str:
    """`root`: the folder with the code. Raises CommandFailed."""
    result = subprocess.run(
        [sys.executable, "manage.py", *arguments],
        cwd=root,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    if result.returncode != 0:
        raise CommandFailed(arguments, result.returncode, result.stdout, result.stderr)
    return result.stdout


class CommandFailed(AssertionError):
    """A management command exited with an error. `stdout` and `stderr` are in the message too."""

    def __init__(self, arguments: tuple[str, ...], code: int, stdout: str, stderr: str) -> None:
        super().__init__(f"manage.py {shlex.join(arguments)} ended with {code}\n{stdout}\n{stderr}")
        self.code = code
        self.stdout = stdout
        self.stderr = stderr
