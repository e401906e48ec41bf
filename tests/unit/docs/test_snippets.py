"""Snippets of the guides do what the text says: Python in a project, JavaScript as Node reads it."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import types
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from channels.layers import get_channel_layer

from fanfare import testing
from fanfare.applications import models, registry
from fanfare.integration import rules, target
from fanfare.protocol import capabilities, revocations
from tests.harness import parts
from tests.unit.docs import pages

DOCS = pages.ROOT / "docs"

# Parses each text as a module, without running it.
PARSE = """
const vm = require("node:vm");
const faults = [];
for (const [place, code] of JSON.parse(require("node:fs").readFileSync(0, "utf8"))) {
  try {
    new vm.SourceTextModule(code, { identifier: place });
  } catch (error) {
    faults.push(`${place}: ${error.message}`);
  }
}
process.stdout.write(JSON.stringify(faults));
"""


def test_javascript_of_every_page_parses() -> None:
    found = [
        (f"{pages.name(page)}:{block.line}", block.text)
        for page in pages.all_pages()
        for block in pages.blocks(page)
        if block.language in ("js", "javascript")
    ]
    assert len(found) > 20
    done = subprocess.run(
        [parts.executable("node", "nodejs"), "--no-warnings", "--experimental-vm-modules", "-e", PARSE],
        input=json.dumps(found),
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == []


# Pages whose JavaScript and HTML these tests run whole.
WHOLE = {
    "docs/tutorial/first-steps.md": "tests/browser/test_tutorial.py",
    "docs/how-to/existing-project.md": "tests/browser/test_existing_project.py",
    "docs/how-to/frontends.md": "tests/browser/test_frontend_snippets.py",
    "docs/how-to/point-sdks.md": "tests/browser/test_sdk_snippets.py",
}
# A page and a part of a block, as `pages.snippet` and its like take them.
MARK = re.compile(r"""\(\s*(?:"[\w/.-]+\.md"|guide),\s*("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')""")


LANGUAGES = ("js", "html", "json")
BY_HAND = '"appManager.array.apps"'  # the configuration of soketi


def test_every_javascript_html_and_json_block_is_run_by_a_test() -> None:
    sources = [path.read_text("utf-8") for path in (pages.ROOT / "tests").glob("*/test_*.py")]
    missing = []
    for page in pages.all_pages():
        name = pages.name(page)
        parts = [ast.literal_eval(mark) for text in sources if f'"{name}"' in text for mark in MARK.findall(text)]
        missing += [
            f"{name}:{block.line}"
            for block in pages.blocks(page)
            if block.language in LANGUAGES
            and name not in WHOLE
            and not any(part in block.text for part in (*parts, BY_HAND))
        ]
    assert missing == []
    for name, test in WHOLE.items():
        assert f'"{name}"' in (pages.ROOT / test).read_text("utf-8")


@pytest.fixture
def application(db: None) -> models.Application:
    return models.Application.objects.create(name="shop", app_id="7", key="the-key", secret="the-secret")


@pytest.fixture
def user(db: None, django_user_model: Any) -> Any:
    return django_user_model.objects.create(username="ann")


@pytest.mark.parametrize(
    ("heading", "label"),
    [("channels_redis", "After"), ("Socket.IO", "After, in Django"), ("django-eventstream", "After")],
)
def test_publish_after_a_migration_publishes(heading: str, label: str, application: models.Application) -> None:
    found: dict[str, Any] = {}
    exec(compile(code_of(heading, label), heading, "exec", dont_inherit=True), found)
    with testing.captured_events() as events:
        found["placed"](types.SimpleNamespace(pk=7))
    assert [(one.channel, one.name, one.data) for one in events] == [("orders", "placed", {"id": 7})]


def code_of(section: str, label: str) -> str:
    """The Python code below `label` in a section of the guide to migrate."""
    text = (DOCS / "how-to/migrate.md").read_text(encoding="utf-8")
    return (
        text.partition(f"{section}\n\n")[2]
        .partition("\n## ")[0]
        .partition(f"{label}:\n\n```python\n")[2]
        .partition("```")[0]
    )


def test_code_before_the_migration_from_channels_sends_to_the_group(settings: Any) -> None:
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}
    found: dict[str, Any] = {}
    exec(compile(code_of("channels_redis", "Before"), "channels_redis", "exec", dont_inherit=True), found)
    layer = get_channel_layer()
    async_to_sync(layer.group_add)("orders", "a-page")
    found["placed"](types.SimpleNamespace(pk=7))
    assert layer.channels["a-page"].get_nowait()[1] == {"type": "order.placed", "id": 7}


def test_tokens_of_the_guide_are_issued_and_revoked(application: models.Application, user: Any) -> None:
    token = pages.run("docs/how-to/capability-tokens.md", containing="def token_for")["token_for"](user)
    claims = capabilities.verify(token, (target.application(None).secret,), token.expires - 1)
    assert claims.covers(f"private-orders-{user.pk}-1")
    assert claims.rights == {"subscribe", "presence", "history"}
    with testing.captured_events() as events:
        pages.run("docs/how-to/capability-tokens.md", containing="revoke_capability(token)", token=token)
        assert revocations.COMMAND in [one.channel for one in events._log.sent()]


def test_rule_of_the_guide_returns_a_token(
    application: models.Application, user: Any, rf: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, "registered", rules.RuleSet())
    pages.run("docs/how-to/capability-tokens.md", containing="@channel", __name__="guide")
    request = rf.post("/pusher/auth")
    request.user = user
    answer = rules.authorize(request, "private-orders-7", registry.Limits())
    assert answer.token is not None
    assert capabilities.is_token(answer.token)
