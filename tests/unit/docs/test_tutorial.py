"""The tutorial's files, put where it says into a copy of the project, make an app that works."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.unit.docs import pages

TUTORIAL = pages.ROOT / "docs/tutorial/first-steps.md"
TIMEOUT_S = 120

# What a reader does in a browser: signs in, adds a card, asks to join the channel.
VISIT = """
import json
from django.contrib.auth import get_user_model
from django.test import Client
from apps.applications.models import Application
from apps.realtime import publishing

Application.objects.create(name="tutorial", app_id="7", key="the-key", secret="the-secret")
ann = get_user_model().objects.create_user("ann")
stranger, client = Client(), Client()
client.force_login(ann)
asked = {"socket_id": "1.2", "channel_name": "private-board"}
print(json.dumps({
    "stranger": stranger.get("/board/").status_code,
    "page": client.get("/board/").content.decode(),
    "added": client.post("/board/", {"text": "First"}).json(),
    "empty": client.post("/board/", {"text": ""}).status_code,
    "ann may listen": client.post("/pusher/auth", asked).status_code,
    "a stranger may listen": stranger.post("/pusher/auth", asked).status_code,
    "cards": client.get("/board/").content.decode().count("First"),
    "published": publishing.statistics(),
}))
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project with the tutorial's app in it."""
    folder = tmp_path_factory.mktemp("tutorial") / "project"
    for part in ("apps", "myproject"):
        shutil.copytree(pages.ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(pages.ROOT / "manage.py", folder)
    follow(folder)
    return folder


def follow(folder: Path) -> None:
    """Do what the tutorial's steps 2 to 6 say."""
    for command in re.findall(r"^    ((?:mkdir -p|touch) .+)$", TUTORIAL.read_text(encoding="utf-8"), re.MULTILINE):
        subprocess.run(command.split(), cwd=folder, check=True)
    for block in pages.blocks(TUTORIAL):
        file = folder / block.file
        if block.language == "diff":
            apply(file, block.text)
        else:
            file.write_text(block.text, encoding="utf-8")


def apply(file: Path, diff: str) -> None:
    """Add the lines with a plus around the line without one, which must be there once."""
    (known,) = [line[1:].strip() for line in diff.splitlines() if not line.startswith("+")]
    text = file.read_text(encoding="utf-8")
    (margin,) = re.findall(rf"^( *){re.escape(known)}$", text, re.MULTILINE)
    wanted = "\n".join(margin + line[1:].strip() for line in diff.splitlines())
    file.write_text(text.replace(margin + known, wanted), encoding="utf-8")


def run(project: Path, *arguments: str) -> str:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("FANFARE_", "DJANGO_"))},
        "FANFARE_ENV_FILE": os.devnull,
        "FANFARE_DATA_DIR": str(project.parent / "data"),
        "FANFARE_DEBUG": "1",
        "FANFARE_ALLOWED_HOSTS": "testserver",
    }
    done = subprocess.run(
        [sys.executable, "manage.py", *arguments],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_app_of_the_tutorial_works_as_it_says(project: Path) -> None:
    run(project, "makemigrations", "board")
    run(project, "migrate", "--verbosity", "0")
    run(project, "check")
    seen = json_line(run(project, "shell", "--no-imports", "-c", VISIT))
    assert seen["stranger"] == 302
    assert "vendor/pusher-js/pusher.min.js" in seen["page"]
    assert '"key": "the-key"' in seen["page"]
    assert seen["added"] == {"id": 1, "text": "First", "author": "ann"}
    assert seen["empty"] == 400
    assert seen["ann may listen"] == 200
    assert seen["a stranger may listen"] == 403
    assert seen["cards"] == 1
    assert seen["published"] == {"published": 1, "duplicates": 0, "failed_after_commit": 0}


def json_line(output: str) -> dict[str, Any]:
    """The last line: Django's shell may say something before it."""
    found = json.loads(output.strip().splitlines()[-1])
    assert isinstance(found, dict)
    return found
