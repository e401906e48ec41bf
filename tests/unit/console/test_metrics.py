from __future__ import annotations

import re
from typing import Any

import pytest
from prometheus_client import parser

from fanfare.console import exposition, metrics, reports
from tests.unit.docs import pages


def collection(*workers: tuple[dict[str, int | float], dict[str, int | float]]) -> reports.Collection:
    found = tuple(
        reports.Report(f"w{number}", "node", number, "1.0", 0.0, counters, gauges)
        for number, (counters, gauges) in enumerate(workers)
    )
    return reports.Collection(found, {}, len(found))


def values(body: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parser.text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


def test_figures_are_sums_over_the_workers() -> None:
    body, content_type = exposition.render(
        collection(
            ({"deliveries": 3, "api.refused.401": 1}, {"connections.now": 2, "engine.log_bytes": 100, "engine.ok": 1}),
            ({"deliveries": 4, "api.refused.429": 2}, {"connections.now": 5, "engine.log_bytes": 100, "engine.ok": 0}),
        )
    )
    found = values(body)
    assert content_type.startswith("text/plain")
    assert found["fanfare_connections", ()] == 7
    assert found["fanfare_deliveries_total", ()] == 7
    assert found["fanfare_api_refusals_total", (("status", "401"),)] == 1
    assert found["fanfare_api_refusals_total", (("status", "429"),)] == 2
    assert found["fanfare_engine_log_bytes", ()] == 100  # every worker reports the same file
    assert found["fanfare_engine_up", ()] == 0
    assert found["fanfare_workers", ()] == 2


def test_a_counter_without_a_metric_of_its_own_is_still_shown() -> None:
    found = values(exposition.render(collection(({"something.new": 1}, {})))[0])
    assert found["fanfare_other_total", (("name", "something.new"),)] == 1


def documented() -> list[str]:
    """The counters of docs/reference/statistics.md that a worker has, with a value for each `*`."""
    text = (pages.ROOT / "docs/reference/statistics.md").read_text(encoding="utf-8")
    names = []
    for title, section in re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL):
        found = re.findall(r"^\| `([a-z_.*]+)` \|", section, re.MULTILINE)
        if title != "Django processes":
            names += [f"engine.{name}" if title == "The engine" else name.replace("*", "some") for name in found]
    return names


def test_every_documented_counter_has_a_metric_of_its_own() -> None:
    names = documented()
    assert len(names) > 60
    sources = {level.source for level in metrics.GAUGES}
    families = metrics.COUNTERS
    own = [name for name in names if name in sources or any(family.has(name) for family in families)]
    assert own == names


def test_names_and_help_follow_the_conventions() -> None:
    names = [family.name for family in (*metrics.COUNTERS, metrics.OTHER)] + [level.name for level in metrics.GAUGES]
    assert len(set(names)) == len(names)
    for entry in (*metrics.COUNTERS, metrics.OTHER, *metrics.GAUGES):
        assert re.fullmatch(r"[a-z][a-z_]*", entry.name)
        assert entry.help.endswith(".")


def scope(client: tuple[str, int] | None, *headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return {"type": "http", "method": "GET", "path": "/metrics", "client": client, "headers": list(headers)}


LOOPBACK = ("127.0.0.1", 4711)


@pytest.mark.parametrize(
    ("client", "headers", "allowed"),
    [
        (LOOPBACK, [], True),
        (("::1", 4711), [], True),
        (("192.0.2.1", 4711), [], False),
        (None, [], False),
        (LOOPBACK, [(b"x-forwarded-for", b"127.0.0.1")], False),
        (LOOPBACK, [(b"x-forwarded-proto", b"https")], False),
        (LOOPBACK, [(b"forwarded", b"for=127.0.0.1")], False),
        (LOOPBACK, [(b"x-real-ip", b"127.0.0.1")], False),
        (LOOPBACK, [(b"via", b"1.1 cache")], False),
        (("192.0.2.1", 4711), [(b"authorization", b"Bearer secret")], True),
        (LOOPBACK, [(b"forwarded", b"for=192.0.2.1"), (b"authorization", b"Bearer secret")], True),
        (("192.0.2.1", 4711), [(b"authorization", b"Bearer wrong")], False),
        (("192.0.2.1", 4711), [(b"authorization", b"Bearer ")], False),
    ],
)
def test_the_metrics_are_open_to_this_machine_and_to_the_token(
    client: tuple[str, int] | None, headers: list[tuple[bytes, bytes]], allowed: bool
) -> None:
    assert metrics.may_read(scope(client, *headers), "secret") is allowed


def test_without_a_token_setting_no_token_is_good() -> None:
    assert not metrics.may_read(scope(("192.0.2.1", 1), (b"authorization", b"Bearer ")), "")
