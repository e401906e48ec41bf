"""The functions of Fanfare that read text or bytes of a form: JSON, URLs, base64, structures, regular expressions."""

from __future__ import annotations

import ast
import functools
import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import Path

import fanfare
from tests.fuzz import parsers

ROOT = Path(fanfare.__file__).parent
DECODERS = frozenset(
    [
        *("loads", "unpack", "unpack_from", "unpackb", "b64decode", "fromhex", "fromisoformat", "decode_complete"),
        *("urlsplit", "parse_qsl", "unquote", "unquote_plus", "ip_address", "ip_network", "conninfo_to_dict"),
        *("match", "fullmatch", "search", "finditer", "findall"),
    ]
)
PACKAGES = ("testing", "migrations")  # not of a server

WORKERS = "a message of another worker, or a row or an entry that Fanfare has written"
PROJECT = "an argument, a setting or an answer of the project"
DEPLOYMENT = "an answer of a Fanfare server that the project has configured"
CAMPAIGN = "`python -m tests.fuzz requests` and `frames` send it to a server"

# Why a module or a function of it needs no target.
ELSEWHERE = {
    "applications/models/encrypted": WORKERS,
    "channel_layer/messages:content_unpacked": WORKERS,
    "console/board": WORKERS,
    "console/client": DEPLOYMENT,
    "console/connections": WORKERS,
    "console/member_history": WORKERS,
    "console/reports": WORKERS,
    "console/survey": WORKERS,
    "console/tails": WORKERS,
    "console/watches": WORKERS,
    "console/worker_control": WORKERS,
    "engine/local/log_file": "a damaged log: `python -m tests.unit.engine.damage`",
    "engine/moves": WORKERS,
    "engine/redis/link": "the version that the store names",
    "engine/redis/moving": WORKERS,
    "hub/history_pages": WORKERS,
    "hub/revisions": WORKERS,
    "hub/streams": WORKERS,
    "hub/telemetry": WORKERS,
    "hub/traces": WORKERS,
    "integration/appending": WORKERS,
    "integration/checks": PROJECT,
    "integration/clients": PROJECT,
    "integration/history": WORKERS,
    "integration/models": WORKERS,
    "integration/payloads": WORKERS,
    "integration/presence": WORKERS,
    "integration/remote/client": DEPLOYMENT,
    "integration/remote/engine": PROJECT,
    "integration/remote/refusals": DEPLOYMENT,
    "integration/remote/streams": PROJECT,
    "integration/rules:RuleSet.find": "the target of authorization rules matches its pattern",
    "integration/rules:_by_token": PROJECT,
    "integration/signals": WORKERS,
    "integration/stream_producer": WORKERS,
    "integration/streams": PROJECT,
    "integration/tokens": PROJECT,
    "middleware:ContentSecurityPolicy.policy": PROJECT,
    "protocol/ack_tracker": WORKERS,
    "protocol/capabilities:sign": PROJECT,
    "protocol/revocations": WORKERS,
    "protocol/session_owners": WORKERS,
    "protocol/termination": WORKERS,
    "server/urlconf": PROJECT,
    "webhooks/admin": WORKERS,
    "webhooks/events": WORKERS,
    "api/asgi": CAMPAIGN,
    "api/direct": CAMPAIGN,
    "api/queries:channel": WORKERS,
    "console/endpoints/channels": "the text is an argument of a query",
    "console/endpoints/connections": "the form is that of the HTTP API's target `path of a request`",
    "console/filters:_literal": "the target of the console's filters has parsed it",
    "protocol/client_events": CAMPAIGN,
    "server/claims": CAMPAIGN,
    "server/consumers": CAMPAIGN,
    "server/landing": CAMPAIGN,
    "server/mounts:_load": PROJECT,
    "server/upgrade": CAMPAIGN,
    "sockets/protocol": CAMPAIGN,
}


@functools.cache
def readers() -> set[str]:
    """Each as "module:function", where the function is its qualified name."""
    found = set()
    for path in ROOT.rglob("*.py"):
        module = path.relative_to(ROOT).with_suffix("").as_posix()
        if not module.startswith(PACKAGES):
            found |= {f"{module}:{name}" for name in _readers(ast.parse(path.read_text()), ())}
    return found


def _readers(node: ast.AST, names: tuple[str, ...]) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield from _readers(child, (*names, child.name))
            continue
        if isinstance(child, ast.Call) and names:
            called = child.func
            name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
            if name in DECODERS:
                yield ".".join(names)
        yield from _readers(child, names)


def reached(targets: Mapping[str, parsers.Target]) -> set[str]:
    """The functions of Fanfare that run while the targets parse their seeds, in the form of `readers`."""
    codes: set[types.CodeType] = set()
    _clear_caches()

    def note(frame: types.FrameType, event: str, _: object) -> None:
        if event == "call":
            codes.add(frame.f_code)

    for target in targets.values():
        for seed in target.seeds:
            sys.setprofile(note)
            try:
                target.parse(seed)
            except target.refusals:
                pass
            finally:
                sys.setprofile(None)
    found: set[str] = set()
    for code in codes:
        path = Path(code.co_filename)
        if path.is_relative_to(ROOT):
            name = code.co_qualname.replace(".<locals>", "")
            found.add(f"{path.relative_to(ROOT).with_suffix('').as_posix()}:{name}")
    return found


def _clear_caches() -> None:
    """Of Fanfare's functions: a cached answer would hide the function that reads the text."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "fanfare":
            for value in list(vars(module).values()):
                if isinstance(value, functools._lru_cache_wrapper) and value.__module__ == name:
                    value.cache_clear()
