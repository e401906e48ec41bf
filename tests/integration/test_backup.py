"""The documented backup of a running server, restored into another data folder."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.harness import calls, deployments, servers
from tests.unit.docs import pages

Start = Callable[..., servers.Server]


def test_restored_server_has_the_applications_and_the_history(
    start: Start, fleet: servers.Fleet, tmp_path: Path
) -> None:
    server = start("uvicorn", fleet.deployment(FANFARE_SECRET_KEY=""))
    application = server.deployment.create_application("Archive", "--history", "kept*=100,3600")
    with calls.Caller(server, application) as caller:
        waiting_for(caller)
        for number in range(3):
            caller.publish("kept", "counted", str(number))
        _back_up(server.deployment.folder, tmp_path / "backup")
        caller.publish("kept", "counted", "after the backup")
        lost = caller.signed("GET", "channels/kept/history").body
    server.stop()
    copies = [tmp_path / "backup" / name for name in ("db.sqlite3", "secret_key", "engine/log.sqlite3")]
    assert [copy.stat().st_mode & 0o077 for copy in copies] == [0, 0, 0]

    restored = deployments.Deployment(tmp_path / "backup", {}, server.application)
    again = start("uvicorn", restored)
    with calls.Caller(again, application) as caller:
        waiting_for(caller)
        items = caller.signed("GET", "channels/kept/history").body["items"]
        assert sorted(item["data"] for item in items) == ["0", "1", "2"]
        caller.publish("kept", "counted", "3")
        assert len(caller.signed("GET", "channels/kept/history").body["items"]) == 4
        gone = caller.signed("GET", "channels/kept/history", query={"after": lost["position"]})
        assert (gone.status, gone.body["code"]) == (410, "epoch_changed"), "its offset is another event's now"


def _back_up(source: Path, target: Path) -> None:
    """Run the page's own code."""
    page = pages.ROOT / "docs/how-to/back-up.md"
    (code,) = re.findall(r"<<'END'\n(.*?)\nEND\n", page.read_text(encoding="utf-8"), re.DOTALL)
    assert 'pathlib.Path("var"), pathlib.Path("backup")' in code
    code = code.replace('"var"', repr(str(source))).replace('"backup"', repr(str(target)))
    subprocess.run([sys.executable, "-c", code], check=True)
    target.chmod(0o700)


def waiting_for(caller: calls.Caller) -> None:
    """A worker knows a new application soon."""
    for _ in range(100):
        if caller.signed("GET", "channels").status == 200:
            return
    raise AssertionError("the application is not known")
