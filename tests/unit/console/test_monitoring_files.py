"""The Grafana dashboard and the alert rules in deploy/ ask for metrics that exist."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import parser

from fanfare.console import exposition, metrics
from fanfare.runtime import histograms
from tests.harness import parts
from tests.unit.console.test_metrics import collection, documented
from tests.unit.docs import pages

DASHBOARD = pages.ROOT / "deploy/grafana-dashboard.json"
ALERT_TESTS = Path(__file__).with_name("alert_rules.yml")
ALERTS = pages.ROOT / "deploy/prometheus-alerts.yml"

_METRIC = re.compile(r"\b(fanfare_\w+)(?:\{([^}]*)\})?")
_LABEL = re.compile(r'(\w+)\s*=~?"')
_OF_THE_SCRAPE = {"instance", "job"}  # labels that Prometheus adds


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return found


def queries() -> Iterator[str]:
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"]
    yield from re.findall(r"^ +expr: (.+)$", ALERTS.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.fixture(scope="module")
def existing() -> dict[str, set[str]]:
    """The samples that a deployment has whose counters and gauges were all used, with their labels."""
    histogram = histograms.Histogram()
    histogram.observe(0.001)
    counters: dict[str, int | float] = dict.fromkeys(documented(), 1)
    for durations in metrics.HISTOGRAMS:
        counters |= histogram.counters(durations.source)
    gauges: dict[str, int | float] = {level.source: 1 for level in metrics.GAUGES}
    gauges[f"{metrics.JOBS}webhooks.running"] = 1
    body, _ = exposition.render(collection((counters, gauges)))
    found: dict[str, set[str]] = {}
    for family in parser.text_string_to_metric_families(body.decode()):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


@pytest.mark.parametrize("query", sorted(set(queries())))
def test_query_names_metrics_and_labels_that_exist(query: str, existing: dict[str, set[str]]) -> None:
    asked = _METRIC.findall(query)
    assert asked or query.startswith("up{")
    for name, labels in asked:
        assert name in existing
        assert set(_LABEL.findall(labels)) <= existing[name] | _OF_THE_SCRAPE


def test_every_histogram_and_gauge_of_the_engine_is_on_the_dashboard() -> None:
    text = DASHBOARD.read_text(encoding="utf-8")
    for durations in metrics.HISTOGRAMS:
        assert f"fanfare_{durations.name}_bucket" in text
    assert "fanfare_engine_lag_entries" in text


def test_legends_name_labels_that_exist(existing: dict[str, set[str]]) -> None:
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", ()):
            names = {name for name, _ in _METRIC.findall(target["expr"])}
            labels = set().union(*(existing[name] for name in names))
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= labels


def test_panels_have_titles_and_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        assert panel["title"]
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        taken |= cells


def promtool(*arguments: str | Path) -> str:
    """The output of promtool, of Debian's package `prometheus`."""
    program = parts.executable("promtool")
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_each_alert_fires_on_its_fault_alone() -> None:
    assert "SUCCESS" in promtool("test", "rules", ALERT_TESTS)


def test_promtool_accepts_the_scrape_configuration_and_the_alert_rules() -> None:
    promtool("check", "config", pages.ROOT / "deploy/prometheus.yml")


def test_promtool_accepts_the_queries_of_the_dashboard(tmp_path: Path) -> None:
    found = [query.replace("$__rate_interval", "5m").replace("$instance", "a") for query in queries()]
    rules = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(found)]
    file = tmp_path / "queries.yml"
    file.write_text(json.dumps({"groups": [{"name": "queries", "rules": rules}]}), encoding="utf-8")
    assert f"SUCCESS: {len(found)} rules found" in promtool("check", "rules", file)


def test_each_alert_has_a_name_and_a_test() -> None:
    tested = ALERT_TESTS.read_text(encoding="utf-8")
    names = re.findall(r"alert: (\w+)", ALERTS.read_text(encoding="utf-8"))
    assert len(set(names)) == len(names) > 10
    assert set(re.findall(r'alertname="(\w+)"', tested)) == set(names)
