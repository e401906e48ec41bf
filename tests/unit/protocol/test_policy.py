"""What holds for the code as a whole: which codes it may send, how it compares signatures, what it does without."""

from __future__ import annotations

import ast
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]

# Of the vendor's codes, those that clients take as they are meant here. 4004 (over quota) and 4000 (TLS only) are not
# among them: after either, pusher-js stays away for good.
CODES = {4001, 4003, 4005, 4006, 4007, 4009, 4100, 4200, 4301, 4302}

SECRET_TEXT = re.compile(r"signature|digest|hmac", re.IGNORECASE)


def modules() -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted((ROOT / "apps").rglob("*.py")):
        yield path, ast.parse(path.read_text(encoding="utf-8"))


def test_no_close_code_is_sent_but_those_of_the_policy() -> None:
    """A code is a number of four digits that begins with 4. Of quantities the project writes 4_000, not 4000."""
    found = set()
    for path in (ROOT / "apps").rglob("*.py"):
        with tokenize.open(path) as source:
            tokens = tokenize.generate_tokens(source.readline)
            found |= {token.string for token in tokens if token.type == tokenize.NUMBER}
    assert {int(number) for number in found if re.fullmatch(r"4[0-3]\d\d", number)} == CODES


def test_signatures_are_compared_in_constant_time() -> None:
    for path, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.Compare) and any(isinstance(op, ast.Eq | ast.NotEq) for op in node.ops):
                names = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
                names |= {part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute)}
                assert not any(map(SECRET_TEXT.search, names)), f"{path.relative_to(ROOT)}:{node.lineno}"
    for module in ("apps/fanfare/protocol/signatures.py", "apps/fanfare/api/authentication.py"):
        assert "hmac.compare_digest(" in (ROOT / module).read_text(encoding="utf-8")


def test_the_server_needs_no_sdk() -> None:
    imported = set()
    for _, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                imported |= {name.name.partition(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                imported.add(str(node.module).partition(".")[0])
    assert "fanfare" in imported
    assert not imported & {"pusher", "pysher"}


def test_only_the_integration_decrypts_encrypted_channels() -> None:
    """The other module encrypts the secrets of applications in the database."""
    texts = {path.relative_to(ROOT): path.read_text(encoding="utf-8") for path, _ in modules()}
    assert {str(path) for path, text in texts.items() if re.search(r"^\s*(from|import) nacl", text, re.MULTILINE)} == {
        "apps/fanfare/applications/models/encrypted.py",
        "apps/fanfare/integration/payloads.py",
    }
