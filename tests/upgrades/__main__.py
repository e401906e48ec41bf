"""Upgrade a running server from earlier commits to this code, and print what became of each.

    python -m tests.upgrades [--every N] [--since COMMIT] [COMMIT …]
    python -m tests.upgrades --beside [--engine local|postgres|redis] COMMIT …

For each commit: its code migrates a new database, gunicorn serves it, and an event is published. Then the code in the
folder is replaced by this commit's, `migrate` runs, and the master gets SIGHUP. The upgrade is right if the master
survives, the new workers serve, the history has the old and the new event, and the log has no traceback; or if
`migrate` refuses the database in one sentence. Exits with 1 otherwise.

With `--beside` both releases serve one log at the same time, in each engine, and clients move between them: see
`beside`.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.harness import calls, deployments, servers, waiting
from tests.upgrades import beside

FIRST = "0001862"  # the first commit of the package, whose migrations begin anew
CHANNEL = "kept-upgrades"
WITHIN_S = 60.0
REFUSED_LOG = re.compile(r"The log \S+ has format \d+; this release reads the formats from .*")


class Release:
    """A folder with the code of a commit, which `become` replaces, and a data folder that stays."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "code"
        self.data = folder / "data"

    def become(self, commit: str) -> None:
        """In the same folder, which is the current one of a running server."""
        self.root.mkdir(parents=True, exist_ok=True)
        for path in self.root.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        archive = subprocess.run(
            ["git", "archive", commit], cwd=deployments.REPOSITORY, capture_output=True, check=True
        ).stdout
        subprocess.run(["tar", "-x", "-C", self.root], input=archive, check=True)

    def manage(self, *arguments: str) -> str:
        """Raises CommandFailed."""
        environment = deployments.environment_of(self.data, {"PYTHONPATH": str(self.root / "apps")})
        return deployments.run_manage(environment, *arguments, root=self.root)


def upgrade(commit: str, folder: Path) -> str:
    """What became of it: `upgraded`, or `refused` and why. Raises AssertionError."""
    release = Release(folder)
    release.become(commit)
    release.manage("migrate", "--verbosity", "0")
    printed = release.manage("createapplication", "Tests", "--history", "kept-*=100,3600")
    deployment = deployments.Deployment(release.data, {}, deployments.parse_credentials(printed))
    server = servers.Server("gunicorn pair", deployment, folder / "log", root=release.root)
    try:
        server.wait_until_ready()
        calls.publish(server, CHANNEL, "old", "1")
        old = set(server.workers())
        release.become("HEAD")
        try:
            release.manage("migrate", "--verbosity", "0")
        except deployments.CommandFailed as failed:
            *_, sentence = failed.stderr.strip().splitlines()
            assert "Traceback" not in failed.stderr, failed.stderr
            return f"refused: {sentence}"
        start = server.log_size()
        server.send_signal(signal.SIGHUP)
        waiting.until(
            lambda: (
                REFUSED_LOG.search(server.log_text(start)) or (not old & set(server.workers()) and is_ready(server))
            ),
            WITHIN_S,
            "new workers only",
        )
        assert server.process.poll() is None, "the master ended"
        refusal = REFUSED_LOG.search(server.log_text(start))
        if refusal is not None:
            return f"refused: {refusal[0]}"
        calls.publish(server, CHANNEL, "new", "2")
        with calls.Caller(server) as caller:
            answer = caller.signed("GET", f"channels/{CHANNEL}/history")
        names = [item["event"] for item in answer.body["items"]]
        assert names == ["new", "old"], f"the history has {names}"
        assert "Traceback" not in server.log_text(start), server.log_text(start)
        server.stop()
    except AssertionError as error:
        raise AssertionError(f"{error}\n{server.log_text()[-3_000:]}") from error
    finally:
        server.kill()
    return "upgraded"


def is_ready(server: servers.Server) -> bool:
    return len(server.workers()) == server.expected_workers and server.is_ready()


def commits(since: str, every: int) -> list[str]:
    """From `since` on, oldest first; the first and the last are among them."""
    found = subprocess.run(
        ["git", "log", "--format=%h", "--reverse", "--first-parent", f"{since}^..HEAD"],
        cwd=deployments.REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    return list(dict.fromkeys([*found[::every], found[-1]]))


def beside_each_other(commit: str, engine: str, folder: Path) -> str:
    """As `upgrade`."""
    old, new = Release(folder / "old"), Release(folder / "new")
    old.become(commit)
    new.become("HEAD")
    return beside.run(old.root, new.root, folder, engine)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.upgrades", description=__doc__.partition("\n")[0])
    parser.add_argument("commits", nargs="*", metavar="COMMIT", help="instead of all since the first")
    parser.add_argument("--since", default=FIRST, metavar="COMMIT", help="the first one (default: %(default)s)")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only every Nth commit")
    parser.add_argument("--beside", action="store_true", help="serve both releases at the same time, on one log")
    parser.add_argument("--engine", action="append", choices=beside.ENGINES, help="with --beside (default: all)")
    options = parser.parse_args()
    engines = (options.engine or beside.ENGINES) if options.beside else ("",)
    outcomes: collections.Counter[str] = collections.Counter()
    for commit, engine in itertools.product(options.commits or commits(options.since, options.every), engines):
        with tempfile.TemporaryDirectory(prefix="fanfare-upgrade-") as folder:
            try:
                outcome = beside_each_other(commit, engine, Path(folder)) if engine else upgrade(commit, Path(folder))
            except (AssertionError, TimeoutError, OSError) as error:
                outcome = f"FAILED: {error}"
        print(f"{commit}  {engine}{'  ' if engine else ''}{outcome.replace(folder, '…')}", flush=True)
        outcomes[outcome.partition(":")[0]] += 1
    print(", ".join(f"{count} {name}" for name, count in outcomes.items()))
    return 1 if outcomes["FAILED"] else 0


if __name__ == "__main__":
    sys.exit(main())
